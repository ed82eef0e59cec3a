"""Where completions stand in packed rows. Shapes: N completions, C targets of one, B rows, T
positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sparrowlm.data.packing import Item


def rank_share(rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """The first row of a rank, and the one behind its last."""
    return rank * rows // world_size, (rank + 1) * rows // world_size


def chosen_places(items: Sequence[Item], rows: Sequence[Sequence[int]], seq_len: int) -> Tensor:
    """(N, C) int64: where in a flattened (B, T) the targets stand that the policy chose, in order
    for each item; -1 behind the last."""
    found: list[np.ndarray] = [np.empty(0, np.int64)] * len(items)
    for row, numbers in enumerate(rows):
        start = row * seq_len
        for n in numbers:
            found[n] = start + np.flatnonzero(items[n].mask[1:])
            start += len(items[n].ids) - 1
    places = torch.full((len(items), max(map(len, found), default=0)), -1)
    for n, own in enumerate(found):
        places[n, : len(own)] = torch.from_numpy(own)
    return places


def scattered(values: Tensor, places: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """(B, T) with `values` (N, C) at their places, 0 elsewhere."""
    flat = torch.zeros(int(np.prod(shape)), dtype=dtype)
    real = places >= 0
    flat[places[real]] = values[real].to(dtype)
    return flat.view(*shape)
