"""A held-out split measured, in sums alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from torch import nn

from sparrowlm.batch import Batch, Objective
from sparrowlm.runtime import Runtime, all_sum

Sums = dict[str, tuple[float, float]]


def evaluate(
    objective: Objective, model: nn.Module, batches: Iterable[Batch], runtime: Runtime
) -> Sums:
    """Every metric of an objective over batches, such as `data.streams.windows` gives.

    Called by all ranks with the same batches: they share them, and all get the result. Dropout is
    off meanwhile; the model's mode is left as it is found.

    Returns:
        Each metric's (sum, count) over all batches, so that one division gives the exact mean:
        nats over targets for "loss", bits over bytes for "bits_per_byte" of `NextToken`. Empty
        where there is no batch.

    >>> nats, targets = evaluate(objective, model, windows(val, 256, 32), runtime)["loss"]
    """
    rows: list[torch.Tensor] = []  # each (metrics, 2)
    names: list[str] = []
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), runtime.autocast():
            for batch, counts in _share(batches, runtime.rank, runtime.world_size):
                metrics = objective(model, batch.to(runtime.device)).metrics
                names = list(metrics)
                rows.append(torch.stack(list(metrics.values())) * counts)
    finally:
        model.train(was_training)
    if not rows:
        return {}
    # Read once, at the end, so that the device can run ahead; then added in float64 on the host,
    # since float32 has no room for millions of nats and MPS has nothing wider.
    total = torch.stack(rows).cpu().double().sum(0)
    if runtime.world_size > 1:
        total = all_sum(total.to(runtime.device)).cpu()
    return {name: (pair[0], pair[1]) for name, pair in zip(names, total.tolist(), strict=True)}


def _share(batches: Iterable[Batch], rank: int, world_size: int) -> Iterator[tuple[Batch, bool]]:
    """This rank's batches, and whether each counts. All ranks get equally many, at least one,
    since a sharded model needs all of them in every forward pass: where the last batches do not
    go round, a rank repeats another's and leaves it out of the sums."""
    left = iter(batches)
    while group := list(islice(left, world_size)):
        yield group[rank % len(group)], rank < len(group)
