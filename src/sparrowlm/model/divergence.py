"""How far one model's distribution is from another's, over the vocabulary, a chunk at a time.

As `head.summed_nll`, and for the same reason: what is summed is known, so its gradient is taken as
soon as the logits are there, and no more of them is held than a chunk. N rows, V the vocabulary,
D and E the two models' widths.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparrowlm.model.head import chunk_rows, product_dtype

Direction = Literal["forward_kl", "reverse_kl"]


class Side(NamedTuple):
    """What makes one model's logits."""

    hidden: Tensor
    """(N, D)."""
    weight: Tensor
    """(V, D)."""
    bias: Tensor | None
    """(V,)."""

    def detached(self) -> Side:
        """The same without a gradient."""
        bias = None if self.bias is None else self.bias.detach()
        return Side(self.hidden.detach(), self.weight.detach(), bias)

    def logits(self, rows: slice, dtype: torch.dtype, wide: torch.dtype) -> Tensor:
        """(n, V) of some rows, multiplied in `dtype` and returned in `wide`."""
        bias = None if self.bias is None else self.bias.to(dtype)
        return F.linear(self.hidden[rows].to(dtype), self.weight.to(dtype), bias).to(wide)


class Mixed(NamedTuple):
    """What `summed_divergence` says."""

    total: Tensor
    """() what has a gradient."""
    divergence: Tensor
    """() the divergence alone, at the temperature and not scaled."""
    nll: Tensor
    """() the nats of the targets alone."""


def summed_divergence(
    student: Side,
    teacher: Side,
    targets: Tensor,
    mask: Tensor,
    *,
    direction: Direction,
    temperature: float,
    weight: float,
) -> Mixed:
    """weight T² KL + (1 - weight) nats of the targets, summed over rows (Hinton et al. 2015: the
    gradient of softened distributions shrinks by 1/T²).

    Args:
        student: has the gradient.
        teacher: has none.
        targets: (N,) int64; any value where `mask` is False.
        mask: (N,) bool.
        direction: forward_kl is KL(teacher || student), which covers all that the teacher may say;
            reverse_kl is KL(student || teacher), which keeps to what it likely says (Gu et al.
            2024).
        temperature: T, which divides both sides' logits.
        weight: of the divergence; the rest is of the cross-entropy.
    """
    if not torch.is_grad_enabled():
        student = student.detached()
    plan = (direction, temperature, weight)
    found = _SummedDivergence.apply(
        *student, teacher.detached(), targets.where(mask, 0), mask, plan
    )
    return Mixed(*found)


class _SummedDivergence(torch.autograd.Function):
    """`summed_divergence`, with the gradients at hand when the loss is."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        table: Tensor,
        bias: Tensor | None,
        teacher: Side,
        targets: Tensor,
        mask: Tensor,
        plan: tuple[Direction, float, float],
    ) -> tuple[Tensor, Tensor, Tensor]:
        narrow, wide = product_dtype(hidden), torch.promote_types(hidden.dtype, torch.float32)
        student = Side(hidden.to(narrow), table.to(narrow), bias)
        teacher = teacher._replace(weight=teacher.weight.to(narrow))
        grads = [
            torch.zeros_like(part) if part is not None and needed else None
            for part, needed in zip((hidden, table, bias), ctx.needs_input_grad[:3], strict=True)
        ]
        size = chunk_rows(len(table))
        sums = hidden.new_zeros(3, dtype=wide)
        for start in range(0, len(hidden), size):
            rows = slice(start, start + size)
            said, slope = _chunk(
                student.logits(rows, narrow, wide),
                teacher.logits(rows, narrow, wide),
                targets[rows],
                mask[rows],
                *plan,
            )
            sums += said
            if any(ctx.needs_input_grad[:3]):
                _add_gradients(grads, slope.to(narrow), student, rows)
        ctx.save_for_backward(*grads)
        total, divergence, nll = sums[0].clone(), sums[1].clone(), sums[2].clone()
        ctx.mark_non_differentiable(divergence, nll)
        return total, divergence, nll

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        found = (None if grad is None else grad * grads[0] for grad in ctx.saved_tensors)
        return (*found, None, None, None, None)


def _chunk(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor,
    mask: Tensor,
    direction: Direction,
    temperature: float,
    weight: float,
) -> tuple[Tensor, Tensor]:
    """(3,) total, divergence and nats of logits (n, V), and (n, V) the total's slope in the
    student's logits."""
    warm, theirs = (part.div(temperature).log_softmax(-1) for part in (student, teacher))  # (n, V)
    if direction == "forward_kl":
        odds = theirs.exp()
        each = (odds * (theirs - warm)).sum(-1)  # (n,)
        slope = warm.exp() - odds
    else:
        odds = warm.exp()
        apart = warm - theirs
        each = (odds * apart).sum(-1)
        slope = odds * (apart - each[:, None])
    plain = warm if temperature == 1 else student.log_softmax(-1)
    nll = -plain.gather(-1, targets[:, None]).squeeze(-1).where(mask, 0.0).sum()
    divergence = each.where(mask, 0.0).sum()
    total = weight * temperature**2 * divergence + (1 - weight) * nll
    slope = slope * (weight * temperature)
    if weight != 1:
        wrong = plain.exp().scatter_add(-1, targets[:, None], -plain.new_ones(len(targets), 1))
        slope = slope + (1 - weight) * wrong
    return torch.stack((total, divergence, nll)), slope * mask[:, None]


def _add_gradients(grads: list[Tensor | None], slope: Tensor, student: Side, rows: slice) -> None:
    """Add a chunk's part to the gradients of hidden, weight and bias."""
    hidden, table, bias = grads
    if hidden is not None:
        hidden[rows] = torch.mm(slope, student.weight)
    if table is not None:
        table += torch.mm(slope.t(), student.hidden[rows])
    if bias is not None:
        bias += slope.sum(0, dtype=bias.dtype)
