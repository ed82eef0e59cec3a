"""The learning rate as a function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """Warm-up, then cosine or a stable phase with a linear cooldown.

    A run of so many minutes starts with `total` unknown (0) and holds its peak; once measured
    speed has decided where it cools down, `total` and `cooldown_steps` are set and the rate is a
    function of the step again.

    >>> schedule = Schedule("wsd", warmup_steps=10, total=100, cooldown_steps=50, floor=0.1)
    >>> [round(schedule.scale(step), 2) for step in (0, 9, 30, 50, 75, 99)]
    [0.1, 1.0, 1.0, 0.98, 0.53, 0.1]
    """

    kind: Literal["cosine", "wsd"]
    warmup_steps: int
    total: int  # Steps of the run; 0: not decided yet
    cooldown_steps: int  # wsd: the last steps, which fall to the floor
    floor: float  # Final rate as a share of the peak

    def scale(self, step: int) -> float:
        """The rate of step `step` (from 0) as a share of its peak.

        The last step of warm-up has the peak, and the last step of the run the floor.
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if not self.total:
            return 1.0
        if self.kind == "cosine":
            progress = _share(step, self.warmup_steps, self.total - 1)
            return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * progress)) / 2
        progress = _share(step, self.total - 1 - self.cooldown_steps, self.total - 1)
        return 1 - (1 - self.floor) * progress


def _share(step: int, start: int, end: int) -> float:
    """How far `step` is from `start` to `end`, within [0, 1]."""
    return min(max((step - start) / max(end - start, 1), 0.0), 1.0)
