"""What a measurement says: sums and counts, how sure they are, and how they were taken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparrowlm.evaluate.likelihood import Sums


@dataclass(frozen=True)
class Figure:
    """A mean, as its sum and its count."""

    total: float
    count: float
    stderr: float | None = None
    """Standard error of the mean, where its terms are independent draws."""

    @property
    def value(self) -> float | None:
        """The mean; None where there is nothing to divide by, or no number."""
        found = self.total / self.count if self.count else math.nan
        return found if math.isfinite(found) else None

    def as_json(self) -> dict[str, float | None]:
        """For machines."""
        return {
            "value": self.value,
            "stderr": self.stderr,
            "sum": self.total if math.isfinite(self.total) else None,
            "count": self.count,
        }


@dataclass(frozen=True)
class Measured:
    """One thing measured of one run."""

    name: str
    """A file, a task, "held out"."""
    how: str
    """The policy: windows, prompts, what counts as right."""
    figures: dict[str, Figure]
    notes: tuple[str, ...] = ()
    """What a person should know beside."""
    data: str = ""
    """Fingerprint of what was read, where runs bring their own."""

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "name": self.name,
            "how": self.how,
            "figures": {name: one.as_json() for name, one in self.figures.items()},
            "notes": list(self.notes),
        }


def figures_of(sums: Sums) -> dict[str, Figure]:
    """An objective's metrics. They have no standard error: neighboring tokens are not independent,
    and to take them for it would promise too much."""
    return {name: Figure(total, count) for name, (total, count) in sums.items()}


def mean_of(values: Sequence[float]) -> Figure:
    """The mean of independent values, with its standard error, the sample's deviation over the
    root of their number (None for fewer than two).

    >>> one = mean_of([1.0, 1.0, 0.0, 0.0])
    >>> one.value, round(one.stderr, 4)
    (0.5, 0.2887)
    """
    total, count = math.fsum(values), len(values)
    if count < 2:
        return Figure(total, count)
    squares = math.fsum((value - total / count) ** 2 for value in values)
    return Figure(total, count, math.sqrt(squares / (count - 1) / count))


def pass_at(k: int, written: int, right: int) -> float:
    """The chance that of `k` completions at least one is right, where `right` of `written` were:
    1 - C(n - c, k) / C(n, k), which is unbiased (Chen et al. 2021, "Evaluating Large Language
    Models Trained on Code", equation 1); 1 - (1 - c/n)^k is not.

    Args:
        k: 1 to `written`.

    >>> pass_at(1, 4, 1), pass_at(2, 4, 1), pass_at(4, 4, 1)
    (0.25, 0.5, 1.0)
    """
    if not 1 <= k <= written:
        raise ValueError(f"pass@{k} of {written} completions")
    return 1 - math.comb(written - right, k) / math.comb(written, k)
