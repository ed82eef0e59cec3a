"""The contract of every stage: what a stream yields and what an objective returns.

A stage is a stream of batches and an objective; the trainer knows these three types and nothing
else of either. Shapes: B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparrowlm.runtime import all_sum


class Batch(NamedTuple):
    """Rows that go through the model together."""

    tokens: Tensor
    """(B, T) int64."""
    targets: Tensor
    """(B, T) int64, already shifted: what follows `tokens[b, t]`."""
    mask: Tensor
    """(B, T) bool: True where the target counts."""
    segments: Tensor | None
    """(B, T) int32: the document of a position, -1 on padding; positions restart at every
    segment. None: every row is one segment."""
    columns: dict[str, Tensor]
    """Leading dimension B: reference log-probabilities, advantages and the like."""

    def rows(self, start: int, stop: int) -> Batch:
        """Rows `start` to `stop`, as views."""
        return self.map(lambda tensor: tensor[start:stop])

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device; asynchronous where the memory allows it."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with every tensor changed."""
        return Batch(
            tokens=change(self.tokens),
            targets=change(self.targets),
            mask=change(self.mask),
            segments=None if self.segments is None else change(self.segments),
            columns={name: change(tensor) for name, tensor in self.columns.items()},
        )


class Loss(NamedTuple):
    """What an objective says of a batch."""

    total: Tensor
    """() the SUM over what counts; the trainer divides once, by the count of the whole step."""
    metrics: dict[str, Tensor]
    """Each (2,): a sum and its count, detached, reduced over micro-steps and ranks as the loss
    is. Never an average: averages of averages are wrong as soon as counts differ."""


class Objective(nn.Module):
    """What a stage minimizes. May own parameters (a value or reward head)."""

    def count(self, batch: Batch) -> Tensor:
        """() how many tokens, pairs or completions of `batch` count; needs no forward pass."""
        raise NotImplementedError

    def forward(self, model: nn.Module, batch: Batch) -> Loss:
        """The summed loss, with exactly one call of `model`, so that a wrapper can hold it."""
        raise NotImplementedError


class Metrics:
    """Adds up `Loss.metrics` over micro-steps, batches and ranks.

    >>> metrics = Metrics()
    >>> metrics.add({"loss": torch.tensor([6.0, 2.0])})
    >>> metrics.add({"loss": torch.tensor([3.0, 1.0])})
    >>> metrics.reduce()
    {'loss': (9.0, 3.0)}
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add pairs, each (2,), on the device they were made on."""
        for name, pair in metrics.items():
            # float32 has no room for millions of nats; MPS has nothing wider.
            pair = pair.detach().to(torch.float32 if pair.device.type == "mps" else torch.float64)
            self.sums[name] = self.sums[name] + pair if name in self.sums else pair

    def reduce(self) -> dict[str, tuple[float, float]]:
        """Each `(sum, count)` over all ranks, as numbers; this waits for the device."""
        names = sorted(self.sums)
        if not names:
            return {}
        stacked = all_sum(torch.stack([self.sums[name] for name in names]))
        return {name: (row[0], row[1]) for name, row in zip(names, stacked.tolist(), strict=True)}
