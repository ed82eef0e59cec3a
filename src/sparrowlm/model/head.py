"""The vocabulary, a chunk of rows at a time.

The logits of a batch are its largest tensor by far: 4,096 rows over 6,400 entries take 105 MB in
float32, over 50,257 entries 823 MB, and their gradient as much again. Nothing here holds more of
them than `chunk_rows`. N rows, D the model's width, V the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 32 << 20


def chunk_rows(vocab_size: int) -> int:
    """How many rows of float32 logits fit `CHUNK_BYTES`, at least 16."""
    return max(16, CHUNK_BYTES // (4 * vocab_size))


def over_vocab(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    fn: Callable[[Tensor, Tensor], Tensor],
    bias: Tensor | None = None,
) -> Tensor:
    """`fn` of the logits, in bounded memory; the backward pass computes the logits again.

    Args:
        hidden: (N, D).
        weight: (V, D).
        targets: (N,) int64.
        fn: of logits (n, V), float32 or wider, and targets (n,), to (n, ...).
        bias: (V,) added to the logits.

    Returns:
        (N, ...) what `fn` returned, row after row.

    >>> entropy = over_vocab(hidden, model.head_weight, targets, lambda logits, _: (
    ...     torch.distributions.Categorical(logits=logits).entropy()))
    """

    def chunk(rows: Tensor, wanted: Tensor) -> Tensor:
        return fn(_wide(F.linear(rows, weight, bias)), wanted)

    size = chunk_rows(weight.shape[0])
    parts = zip(hidden.split(size), targets.split(size), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([chunk(*part) for part in parts])
    return torch.cat([checkpoint(chunk, *part, use_reentrant=False) for part in parts])


def summed_nll(
    hidden: Tensor, weight: Tensor, targets: Tensor, mask: Tensor, bias: Tensor | None = None
) -> Tensor:
    """The nats of the targets that count, summed: `over_vocab` of cross-entropy, faster.

    The gradient of a sum is known but for one factor as soon as the logits are there, so it is
    taken then, a chunk at a time: three products for each, where recomputing takes four. What
    waits for the backward pass is as large as `hidden` and `weight`.

    Args:
        hidden: (N, D).
        weight: (V, D).
        targets: (N,) int64; any value where `mask` is False.
        mask: (N,) bool.
        bias: (V,) added to the logits.

    Returns:
        () in the wider of float32 and the dtype of `hidden`.
    """
    if not torch.is_grad_enabled():
        hidden, weight = hidden.detach(), weight.detach()
        bias = None if bias is None else bias.detach()
    # Of a conversation half or less counts, and the rest needs none of the products. Finding it
    # would make a GPU wait and a compiler stop.
    if hidden.device.type == "cpu" and not torch.compiler.is_compiling():
        # In steps of 256: memory of another size at every call would be scattered over the heap.
        kept = max(1, math.ceil(int(mask.sum()) / 256)) * 256
        if kept < len(mask):
            first = mask.int().argsort(descending=True, stable=True)[:kept]
            hidden, targets, mask = hidden[first], targets[first], mask[first]
    return _SummedNll.apply(hidden, weight, targets.where(mask, 0), mask, bias)


class _SummedNll(torch.autograd.Function):
    """`summed_nll`, with the gradients at hand when the loss is."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        mask: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        wants_hidden, wants_weight, *_, wants_bias = ctx.needs_input_grad
        narrow, wide = product_dtype(hidden), torch.promote_types(hidden.dtype, torch.float32)
        rows, table = hidden.to(narrow), weight.to(narrow)
        size = min(chunk_rows(len(table)), len(rows))
        # Taken once: on a CPU, fresh memory of this size costs as much as writing it.
        logits = rows.new_empty(size, len(table))
        odds = logits.new_empty(logits.shape, dtype=wide)
        hidden_grad = torch.empty_like(hidden) if wants_hidden else None
        weight_grad = torch.zeros_like(weight) if wants_weight else None
        bias_grad = torch.zeros_like(bias) if bias is not None and wants_bias else None
        total = odds.new_zeros(())
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            x, wanted, counts = rows[part], targets[part, None], mask[part, None]
            z, p = logits[: len(x)], odds[: len(x)]  # (n, V) both
            torch.mm(x, table.t(), out=z)
            if bias is not None:
                z += bias
            # Not softmax's own cast, which takes fresh memory for every chunk.
            torch.softmax(z if narrow == wide else p.copy_(z), -1, out=p)
            # The largest probability is 1/V or more, so its logarithm is safe, and it saves the
            # log-sum-exp a pass of its own.
            ahead = z.amax(-1, keepdim=True).to(wide) - z.gather(-1, wanted)
            nats = ahead - p.amax(-1, keepdim=True).log()  # (n, 1)
            total += nats.where(counts, 0.0).sum()
            if wants_hidden or wants_weight or wants_bias:
                slope = p.scatter_add_(-1, wanted, -p.new_ones(wanted.shape))
                slope = slope if narrow == wide else z.copy_(slope)
                if hidden_grad is not None:
                    hidden_grad[part] = torch.mm(slope, table) * counts
                if weight_grad is not None:
                    _add_product(weight_grad, slope.t(), x * counts)
                if bias_grad is not None:
                    bias_grad += (slope * counts).sum(0, dtype=bias_grad.dtype)
        ctx.save_for_backward(hidden_grad, weight_grad, bias_grad)
        return total

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = (
            None if grad is None else grad * grads[0] for grad in ctx.saved_tensors
        )
        return hidden, weight, None, None, bias


def product_dtype(hidden: Tensor) -> torch.dtype:
    """What autocast would multiply in; a custom function has to ask."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to total, in its own dtype."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += torch.mm(left, right)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
