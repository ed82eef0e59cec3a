"""Sums and counts: the only averages that survive being split over micro-steps and ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class Metrics:
    """Adds up `(sum, count)` pairs on the device they were made on."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add one micro-step's pairs, each (2,)."""
        for name, pair in metrics.items():
            pair = pair.detach().double() if pair.device.type != "mps" else pair.detach().float()
            self.sums[name] = self.sums[name] + pair if name in self.sums else pair

    def reduce(self) -> dict[str, tuple[float, float]]:
        """Each `(sum, count)` over all ranks, as numbers; this waits for the device."""
        names = sorted(self.sums)
        if not names:
            return {}
        stacked = all_sum(torch.stack([self.sums[name] for name in names]))
        return {name: (row[0], row[1]) for name, row in zip(names, stacked.tolist(), strict=True)}


def all_sum(tensor: Tensor) -> Tensor:
    """The sum over ranks; the tensor itself where there is one."""
    if dist.is_available() and dist.is_initialized():
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor
