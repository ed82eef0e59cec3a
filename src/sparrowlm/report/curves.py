"""The arithmetic behind a curve: smoothing, thinning, frames and ticks. Free of any drawing."""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import pairwise

from sparrowlm.report.read import Points


def smooth(points: Points, width: float = 0.02) -> Points:
    """A centered moving mean over `width` of the points to either side.

    Centered, because a trailing mean draws a falling loss too high; and at the start over no more
    points on the right than there are on the left, so that the steep fall is not flattened.

    >>> smooth([(0, 1.0), (1, 2.0), (2, 6.0)], width=0.5)
    [(0, 1.0), (1, 3.0), (2, 4.0)]
    """
    reach = int(len(points) * width)
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    means = []
    for index, (at, _) in enumerate(points):
        start = index - min(reach, index)
        stop = min(index + min(reach, index) + 1, len(points))
        means.append((at, (sums[stop] - sums[start]) / (stop - start)))
    return means


def thin(points: Points, limit: int = 600) -> Points:
    """At most `2 * limit` points with every peak kept: the least and the greatest of each bin."""
    if len(points) <= 2 * limit:
        return points
    kept: Points = []
    for number in range(limit):
        start, stop = number * len(points) // limit, (number + 1) * len(points) // limit
        part = range(start, stop)
        least = min(part, key=lambda index: points[index][1])
        greatest = max(part, key=lambda index: points[index][1])
        kept += [points[index] for index in sorted({least, greatest})]
    return kept


def settled(points: Points) -> Points:
    """The points after the first twentieth of a long curve, where a loss falls off a cliff.

    A frame that holds the cliff has no room left for what follows it.
    """
    return points[len(points) // 20 :] if len(points) >= 40 else points


def quantile(points: Points, share: float) -> float:
    """The value that `share` of the points do not exceed."""
    ordered = sorted(value for _, value in points)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def frame(values: list[float], *, zero: bool = False, room: float = 0.06) -> tuple[float, float]:
    """(low, high) around the values with a little room; from 0 where asked.

    >>> frame([2.0, 2.0])
    (1.9, 2.1)
    """
    low, high = (0.0 if zero else min(values)), max(values)
    if high <= low:
        pad = abs(high) * 0.05 or 1.0
        return (0.0 if zero else low - pad), high + pad
    pad = (high - low) * room
    return (0.0 if zero else low - pad), high + pad


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers in [low, high], in steps of 1, 2 or 5 times a power of ten.

    >>> ticks(0.0, 612.0)
    [0.0, 200.0, 400.0, 600.0]
    """
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    multiples = (1.0, 2.0, 5.0, 10.0)
    step = power * multiples[min(bisect_left(multiples, rough / power * 0.999), 3)]
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [round((first + number) * step, 12) for number in range(count)]


def label(value: float, values: list[float]) -> str:
    """A tick's text, with the decimals that tell it from its neighbors.

    >>> [label(tick, [1.4, 1.6]) for tick in (1.4, 1.6)]
    ['1.4', '1.6']
    >>> label(20000.0, [0.0, 20000.0])
    '20k'
    """
    if value == 0:
        return "0"
    greatest = max(abs(tick) for tick in values)
    for scale, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if greatest >= (scale if letter != "k" else 1e4):
            return f"{value / scale:.10g}{letter}"
    if greatest < 1e-3:
        mantissa, power = f"{value:.3e}".split("e")
        return f"{float(mantissa):g}e{int(power)}"
    return f"{value:,.{_decimals(values)}f}"


def _decimals(values: list[float]) -> int:
    step = min((b - a for a, b in pairwise(values)), default=values[0])
    return max(0, -math.floor(math.log10(abs(step)) + 1e-9))


def spread(places: list[float], gap: float, low: float, high: float) -> list[float]:
    """The places moved as little as simply possible so that labels `gap` apart do not overlap.

    >>> spread([0.5, 0.52], 0.1, 0.0, 1.0)
    [0.46, 0.56]
    """
    order = sorted(range(len(places)), key=places.__getitem__)
    moved = [places[index] for index in order]
    for _ in range(20):
        for a in range(len(moved) - 1):
            lack = gap - (moved[a + 1] - moved[a])
            if lack > 1e-9:
                moved[a] -= lack / 2
                moved[a + 1] += lack / 2
        moved = [min(max(place, low), high) for place in moved]
    result = [0.0] * len(places)
    for place, index in zip(moved, order, strict=True):
        result[index] = round(place, 4)
    return result
