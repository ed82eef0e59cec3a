"""What objectives on sequences share: log-probabilities of targets, and sums over a segment.

A sequence is a segment of a packed row (`data/packing.py`), numbered from 0 in its row.
B rows, T positions, D the model's width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparrowlm.batch import Batch
from sparrowlm.model.head import over_vocab


def target_logprobs(model: nn.Module, hidden: Tensor, batch: Batch) -> Tensor:
    """(B, T) the log-probability of each target that counts, 0 elsewhere; hidden (B, T, D)."""
    return _over_counted(model, hidden, batch, lambda logits, targets: -_nll(logits, targets))


def target_logprobs_and_entropy(
    model: nn.Module, hidden: Tensor, batch: Batch, *, learned: bool = False
) -> tuple[Tensor, Tensor]:
    """(B, T) `target_logprobs`, and (B, T) the nats of uncertainty in the distribution that each
    target was drawn from, with a gradient where it is `learned`; both 0 where a target does not
    count."""

    def both(logits: Tensor, targets: Tensor) -> Tensor:
        logs = logits.log_softmax(-1)  # (n, V)
        chosen = logs.gather(-1, targets[:, None]).squeeze(-1)
        known = logs if learned else logs.detach()
        return torch.stack((chosen, -(known.exp() * known).sum(-1)), -1)

    found = _over_counted(model, hidden, batch, both)  # (B, T, 2)
    return found[..., 0], found[..., 1]


def target_logprobs_and_likeliest(
    model: nn.Module, hidden: Tensor, batch: Batch
) -> tuple[Tensor, Tensor]:
    """(B, T) `target_logprobs`, and (B, T) bool: the target counts, and no other id is likelier."""

    def both(logits: Tensor, targets: Tensor) -> Tensor:
        likeliest = logits.argmax(-1) == targets
        return torch.stack((-_nll(logits, targets), likeliest.to(logits.dtype)), -1)

    found = _over_counted(model, hidden, batch, both)  # (B, T, 2)
    return found[..., 0], found[..., 1] > 0


def segment_sums(values: Tensor, segments: Tensor | None) -> Tensor:
    """(B, T) where entry [b, s] is the sum of `values` (B, T) over segment s of row b, and 0 where
    a row has no such segment; padding is left out. None: every row is segment 0.

    >>> segment_sums(torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([[0, 0, 1, -1]]))
    tensor([[3., 3., 0., 0.]])
    """
    places = torch.zeros_like(values, dtype=torch.long) if segments is None else segments.long()
    sums = values.new_zeros(values.shape[0], values.shape[1] + 1)
    return sums.scatter_add(1, places + 1, values)[:, 1:]


def spread(sums: Tensor, segments: Tensor | None) -> Tensor:
    """(B, T) each position's entry of `sums` (B, T), as `segment_sums` orders them; 0 on padding.

    >>> spread(torch.tensor([[3.0, 5, 0, 0]]), torch.tensor([[0, 0, 1, -1]]))
    tensor([[3., 3., 5., 0.]])
    """
    if segments is None:
        return sums[:, :1].expand_as(sums)
    return F.pad(sums, (1, 0)).gather(1, segments.long() + 1)


def completion_lengths(batch: Batch) -> Tensor:
    """(B, T) float32: how many targets of each segment count. What has any is a completion."""
    return segment_sums(batch.mask.float(), batch.segments)


def scored(head: nn.Linear, hidden: Tensor) -> Tensor:
    """(...) the scalar that a head (D -> 1) reads off hidden (..., D), never in half precision:
    rewards and values are compared by their last digits."""
    with torch.autocast(hidden.device.type, enabled=False):
        return head(hidden.to(head.weight.dtype)).squeeze(-1)


def over(values: Tensor, real: Tensor) -> Tensor:
    """(2,) a metric: the sum of what is real, detached, and how much that is."""
    kept = torch.where(real, values.detach(), 0.0)
    return torch.stack((kept.sum(), real.sum().to(kept.dtype)))


def zeroed_head(width: int) -> nn.Linear:
    """A head from `width` to one number, which says 0 of everything at first."""
    head = nn.Linear(width, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def _over_counted(
    model: nn.Module, hidden: Tensor, batch: Batch, fn: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """(B, T, ...) `fn` (see `over_vocab`) of the positions that count, 0 elsewhere.

    On a CPU only those are computed: a prompt's half of the rows is half of the products. On a
    GPU their number would have to be waited for, and be a new shape for the compiler every time.
    """
    weight = cast(Tensor, model.head_weight)  # (V, D)
    bias = cast(Tensor | None, model.head_bias)  # (V,)
    rows, targets = hidden.flatten(0, 1), batch.targets.flatten()
    counted = batch.mask.flatten()
    if hidden.device.type == "cpu":
        places = counted.nonzero().squeeze(-1)
        found = over_vocab(rows[places], weight, targets[places], fn, bias)
        whole = found.new_zeros(len(rows), *found.shape[1:]).index_copy(0, places, found)
    else:
        found = over_vocab(rows, weight, targets.where(counted, 0), fn, bias)
        keep = counted.view(-1, *[1] * (found.ndim - 1))
        whole = torch.where(keep, found, 0.0)
    return whole.unflatten(0, batch.mask.shape)


def _nll(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="none")
