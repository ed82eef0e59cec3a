"""Several sources in one stream, each with its share of the rows."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from sparrowlm.batch import Batch
from sparrowlm.data.streams import TokenStream, batch_of, rank_rows

LONGEST_CYCLE = 1 << 16
"""Rows after which the order of the sources repeats at the latest."""


class Deal:
    """Which source a row comes from, and how many rows of that source came before: functions of
    the row's number alone.

    Args:
        weights: of the sources, above zero.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        counts = whole_weights(weights)
        self._cycle = cycle_of(counts)
        self._counts = np.array(counts, dtype=np.int64)
        # (cycle, sources) rows of each source before each place of the cycle, and at its end.
        met = np.zeros((len(self._cycle) + 1, len(counts)), dtype=np.int64)
        met[np.arange(1, len(met)), self._cycle] = 1
        self._met = np.cumsum(met, axis=0)

    def of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source of each of the global `rows` (B,), and its number among that source's."""
        cycles, places = np.divmod(rows, len(self._cycle))
        sources = self._cycle[places]
        return sources, cycles * self._counts[sources] + self._met[places, sources]

    def before(self, row: int) -> np.ndarray:
        """(sources,) how many of the first `row` rows are each source's."""
        cycles, place = divmod(row, len(self._cycle))
        return cycles * self._counts + self._met[place]


class MixedStream:
    """Rows of several streams, dealt out by weight.

    Which source a global row comes from is a function of its number alone, and how many rows of
    that source came before as well; so each source goes through its own epochs in its own order,
    wherever a run is resumed and however many ranks share a step.

    Args:
        streams: one a source, with the same `seq_len`; how many rows each takes a step is decided
            here.
        weights: of the sources, above zero.
        rows: rows of a step, over all ranks.
    """

    def __init__(self, streams: Sequence[TokenStream], weights: Sequence[float], rows: int) -> None:
        self.streams, self.rows = tuple(streams), rows
        self.seq_len, self.separator = streams[0].seq_len, streams[0].separator
        self._deal = Deal(weights)
        self.rows_per_epoch = sum(stream.rows_per_epoch for stream in streams)
        """An epoch is as many rows as the sources hold together; how often each of them is gone
        through in it follows from its weight."""

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The rows of one rank in one step, as `TokenStream.batch` gives them."""
        rows = np.arange(*rank_rows(step, self.rows, rank, world_size), dtype=np.int64)
        sources, own = self._deal.of(rows)
        found = np.empty((len(rows), self.seq_len + 1), dtype=np.int64)
        for number, stream in enumerate(self.streams):
            chosen = sources == number
            if chosen.any():
                found[chosen] = stream.read(own[chosen])
        return batch_of(found, self.separator)

    def tokens(self, step: int) -> list[int]:
        """The tokens that the first `step` steps take of each source."""
        return (self._deal.before(step * self.rows) * self.seq_len).tolist()


def whole_weights(weights: Sequence[float]) -> list[int]:
    """Weights as whole numbers in the same ratio, read as they are written in decimal.

    Where their sum would pass `LONGEST_CYCLE` they are rounded to that sum by largest remainders:
    a share then differs from what was asked for by less than 1 / 65,536.

    >>> whole_weights([0.7, 0.3]), whole_weights([2, 1, 1])
    ([7, 3], [2, 1, 1])
    """
    exact = [Fraction(str(weight)) for weight in weights]
    scale = math.lcm(*(share.denominator for share in exact))
    whole = [int(share * scale) for share in exact]
    whole = [number // math.gcd(*whole) for number in whole]
    if sum(whole) <= LONGEST_CYCLE:
        return whole
    parts = [Fraction(number * LONGEST_CYCLE, sum(whole)) for number in whole]
    rounded = [max(1, int(part)) for part in parts]
    order = sorted(range(len(parts)), key=lambda index: int(parts[index]) - parts[index])
    for index in order[: max(0, LONGEST_CYCLE - sum(rounded))]:
        rounded[index] += 1
    return rounded


def cycle_of(counts: Sequence[int]) -> np.ndarray:
    """(sum of counts,) int64: which source each row of a cycle comes from, evenly spread.

    After any number of rows, every source has had its share of them to within one row. Row n of a
    source with the share w is due between rows n / w and (n + 1) / w; of those that may come, the
    one that is due first does, and no due date is missed (Baruah et al. 1996, "Proportionate
    progress", for one processor; the bound is that of Tijdeman 1980 for his chairman problem).

    >>> cycle_of([2, 1]).tolist()
    [0, 1, 0]
    """
    total = sum(counts)
    given = [0] * len(counts)
    later = [(0, number) for number in range(len(counts))]  # (first row at which it may come, …)
    ready: list[tuple[int, int]] = []  # (row by which it must have come, source)
    order = np.empty(total, dtype=np.int64)
    for row in range(total):
        while later and later[0][0] <= row:
            _, number = heapq.heappop(later)
            heapq.heappush(ready, (-(-(given[number] + 1) * total // counts[number]), number))
        _, number = heapq.heappop(ready)
        order[row] = number
        given[number] += 1
        if given[number] < counts[number]:
            heapq.heappush(later, (given[number] * total // counts[number], number))
    return order
