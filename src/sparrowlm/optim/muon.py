"""Muon: momentum whose matrices are made orthogonal (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/).

Equal shapes are stacked, so that a model of many small layers pays for a few batched products
instead of hundreds of tiny ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from sparrowlm.optim.rule import Group, Rule

# Five steps of a quintic that pushes singular values in (0, 1] towards 1: fast rather than exact,
# they end between about 0.7 and 1.2 (same source).
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5


def orthogonalize(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly, by five Newton-Schulz iterations.

    Iterates on the smaller side: for n <= m one iteration costs 4 n^2 m + 2 n^3 operations.

    Args:
        matrices: (E, rows, columns).
        dtype: of the products; bfloat16 is enough where the hardware has it.

    Returns:
        (E, rows, columns) in `dtype`.
    """
    x = matrices.to(dtype)
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    # The Frobenius norm bounds the largest singular value.
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C)
        x = torch.baddbmm(x, polynomial, x, beta=_A)
    return x.mT if tall else x


class Muon(Rule):
    """Nesterov momentum, orthogonalized, for the matrices of the blocks.

    Args:
        groups: parameters (rows, columns), or (experts, rows, columns). A rate of about 0.02: the
            update is scaled by sqrt(max(1, rows / columns)), so that one rate serves all shapes.
        momentum: of the running gradient.
        dtype: of the iteration's products.
    """

    def __init__(
        self,
        groups: Iterable[Group],
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(groups)
        self.momentum, self.dtype = momentum, dtype

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        for group in self.groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for param in group.params:
                if param.grad is not None:
                    shapes[param.shape].append(param)
            for params in shapes.values():
                self._step_equal(params, group)

    def _step_equal(self, params: list[Tensor], group: Group) -> None:
        """Step parameters of one shape together."""
        for param in params:
            if not self.state[param]:
                self.state[param]["momentum"] = torch.zeros_like(param)
        grads = [param.grad for param in params if param.grad is not None]
        buffers = [self.state[param]["momentum"] for param in params]
        torch._foreach_lerp_(buffers, grads, 1 - self.momentum)
        updates = torch._foreach_lerp(grads, buffers, self.momentum)
        stacked = torch.stack(updates)  # (E, [experts,] rows, columns)
        rows, columns = stacked.shape[-2:]
        flat = orthogonalize(stacked.view(-1, rows, columns), self.dtype)
        flat = flat.to(params[0].dtype).view_as(stacked)
        torch._foreach_mul_(params, 1 - group.lr * group.weight_decay)
        scale = max(1.0, rows / columns) ** 0.5
        torch._foreach_add_(params, list(flat.unbind()), alpha=-group.lr * scale)
