"""The loss of a split and its bits per byte, from sums alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparrowlm.batch import Batch, Objective
from sparrowlm.runtime import Runtime


class Likelihood(NamedTuple):
    """What a model makes of a text, as sums: over batches and ranks they add up, and the
    division comes last.

    >>> Likelihood(nats_sum=2 * math.log(2), count=2, bytes_sum=8).bits_per_byte
    0.25
    """

    nats_sum: float
    """Over the counted targets, end-of-text included."""
    count: int
    """Counted targets."""
    bytes_sum: int
    """UTF-8 bytes of the counted targets; special tokens have none. 0: no tokenizer."""

    @property
    def loss(self) -> float:
        """Nats per token; NaN of nothing."""
        return self.nats_sum / self.count if self.count else math.nan

    @property
    def bits_per_byte(self) -> float | None:
        """What comparing across vocabularies needs; None without a tokenizer."""
        return self.nats_sum / (math.log(2) * self.bytes_sum) if self.bytes_sum else None


def evaluate(
    objective: Objective,
    model: nn.Module,
    batches: Iterable[Batch],
    byte_lengths: Tensor | None,
    runtime: Runtime,
) -> Likelihood:
    """Measure a model on batches, such as `data.streams.windows` gives them.

    Args:
        objective: one whose metric "loss" is (sum of nats, count).
        model: left in training or evaluation mode as it is found.
        batches: this rank's share; where ranks share a split, add up what they return.
        byte_lengths: (vocab_size,) bytes of every id, 0 for specials, or None.
        runtime: where and in which precision.
    """
    table = None if byte_lengths is None else byte_lengths.to(runtime.device, torch.int64)
    losses, lengths = [], []
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                batch = batch.to(runtime.device)
                with runtime.autocast():
                    losses.append(objective(model, batch).metrics["loss"])
                if table is not None:
                    lengths.append((table[batch.targets] * batch.mask).sum())
    finally:
        model.train(was_training)
    # Read once, at the end: the device runs ahead meanwhile. Summed on the host in float64:
    # float32 has no room for millions of nats, and MPS has nothing wider.
    sums = _read(losses)
    return Likelihood(
        nats_sum=math.fsum(nats for nats, _ in sums),
        count=int(math.fsum(count for _, count in sums)),
        bytes_sum=sum(_read(lengths)),
    )


def _read(values: list[Tensor]) -> list:
    return torch.stack(values).cpu().tolist() if values else []
