"""The numbers of a log as columns of bounded length, with every extreme kept."""

from __future__ import annotations

import math
from array import array
from typing import Any

from sparrowlm.report.read import Row, number

AXES = ("step", "tokens", "seconds")
BUCKETS = 2048  # more than a chart is wide; even, since neighbors are joined in pairs
COLUMNS = 100  # numbers in one log; what comes beyond is left out


class Column:
    """One number over the buckets: how often it was there, its sum, its least and greatest.

    An empty bucket's least is infinite and its greatest is minus that, so joining needs no cases.
    """

    def __init__(self) -> None:
        self.count, self.total = array("q"), array("d")
        self.low, self.high = array("d"), array("d")

    def reach(self, length: int) -> None:
        """Be at least so long."""
        lack = length - len(self.count)
        if lack > 0:
            self.count.extend([0] * lack)
            self.total.extend([0.0] * lack)
            self.low.extend([math.inf] * lack)
            self.high.extend([-math.inf] * lack)

    def add(self, bucket: int, value: float) -> None:
        """Take a value in."""
        if bucket >= len(self.count):
            self.reach(bucket + 1)
        self.count[bucket] += 1
        self.total[bucket] += value
        if value < self.low[bucket]:
            self.low[bucket] = value
        if value > self.high[bucket]:
            self.high[bucket] = value

    def halve(self, length: int) -> None:
        """Join neighbors in pairs; `length` is even."""
        self.reach(length)
        for name, join in (("count", _sum), ("total", _sum), ("low", min), ("high", max)):
            old = getattr(self, name)
            setattr(self, name, array(old.typecode, map(join, old[::2], old[1::2])))

    def part(self, start: int, length: int, *, single: bool) -> dict[str, list[float | None]]:
        """The buckets from `start` on: `mean`, and `low` and `high` unless each is a `single` row.
        None where a bucket is empty."""
        self.reach(length)
        places = range(start, length)
        mean = [self.total[i] / self.count[i] if self.count[i] else None for i in places]
        if single:
            return {"mean": _short(mean)}
        low = [self.low[i] if self.count[i] else None for i in places]
        high = [self.high[i] if self.count[i] else None for i in places]
        return {"mean": _short(mean), "low": _short(low), "high": _short(high)}


class Track:
    """The rows of one kind, in buckets of `width` rows each.

    When all buckets are full, neighbors are joined and the width doubles. So memory and what goes
    to a page are bounded however long a run is, a row is taken in at a cost that does not grow,
    and no peak is lost: a bucket knows its least and its greatest value. It stands where its last
    row stands.

    Args:
        buckets: how many at most; even.
    """

    def __init__(self, buckets: int = BUCKETS) -> None:
        self.buckets, self.width, self.rows = buckets, 1, 0
        self.axes = {name: array("d") for name in AXES}
        self.columns: dict[str, Column] = {}

    def __len__(self) -> int:
        return -(-self.rows // self.width)

    def add(self, row: Row) -> None:
        """Take a row in; what is no finite number in it is left out."""
        if self.rows == self.buckets * self.width:
            self._halve()
        bucket = self.rows // self.width
        self.rows += 1
        for name, places in self.axes.items():
            value = number(row.get(name))
            if value is None:  # a row without a clock stands where the one before stands
                value = places[-1] if places else 0.0
            places[bucket:] = array("d", [value])
        for key, entry in row.items():
            if key in AXES or (value := number(entry)) is None:
                continue
            if key not in self.columns and len(self.columns) < COLUMNS:
                self.columns[key] = Column()
            if key in self.columns:
                self.columns[key].add(bucket, value)

    def _halve(self) -> None:
        self.width *= 2
        for name, places in self.axes.items():
            self.axes[name] = places[1::2]
        for column in self.columns.values():
            column.halve(self.buckets)

    def part(self, start: int = 0) -> dict[str, Any]:
        """The buckets from `start` on, as plain values for JSON."""
        length = len(self)
        start = min(max(start, 0), length)
        whole = {"step": int, "tokens": int, "seconds": _milliseconds}
        return {
            "start": start,
            "width": self.width,
            "axes": {name: list(map(whole[name], self.axes[name][start:])) for name in AXES},
            "columns": {
                key: column.part(start, length, single=self.width == 1)
                for key, column in self.columns.items()
            },
        }


def _sum(a: float, b: float) -> float:
    return a + b


def _short(values: list[float | None]) -> list[float | None]:
    """Six digits, which is more than a screen shows, and half as many bytes on the way."""
    return [None if value is None else float(f"{value:.6g}") for value in values]


def _milliseconds(seconds: float) -> float:
    return round(seconds, 3)
