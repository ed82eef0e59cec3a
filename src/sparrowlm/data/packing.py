"""Sequences side by side in rows of one length, so that little of a row is padding.

A sequence is a conversation, a chosen or a rejected answer with its prompt, a completion with
what was asked. Each is a segment of its row: it sees nothing of its neighbors, and its positions
start at 0. Sequences that are compared with each other are a bundle, which no row splits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from sparrowlm.batch import Batch


class Item(NamedTuple):
    """One sequence. Of n ids the first n - 1 are read and the last n - 1 are targets, so it takes
    n - 1 positions of a row."""

    ids: np.ndarray
    """(n,) integers, n at least 2."""
    mask: np.ndarray
    """(n,) bool: which ids are to be learned; the first one never is."""
    columns: dict[str, np.ndarray]
    """Each (n,) float32: a value of every id, found in the batch where the id is the target."""


Bundle = tuple[Item, ...]
"""Sequences that stay together, in an order that means something: (chosen, rejected)."""


def positions(bundle: Bundle) -> int:
    """How many positions of a row a bundle takes.

    >>> two = Item(np.arange(5), np.ones(5, bool), {})
    >>> positions((two, two))
    8
    """
    return sum(len(item.ids) - 1 for item in bundle)


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which items share a row: the longest first, each into the row that it fills best.

    Best-fit decreasing needs at most 11/9 of the least possible number of rows, and one more
    (Johnson 1973); with many short items next to nothing stays empty.

    Args:
        lengths: positions of each item, each 1 to `capacity`.
        capacity: positions of a row.

    Returns:
        Rows, each a list of indices into `lengths`; equal lengths in their given order.

    >>> best_fit([3, 5, 2, 6], 8)
    [[3, 2], [1, 0]]
    """
    rows: list[list[int]] = []
    free: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows by the space they have left
    spaces = 0  # bit s is set where free[s] is not empty
    for item in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        need = int(lengths[item])
        enough = spaces >> need
        if enough:
            space = need + (enough & -enough).bit_length() - 1  # the least that suffices
            row = free[space].pop()
            if not free[space]:
                spaces &= ~(1 << space)
        else:
            row, space = len(rows), capacity
            rows.append([])
        rows[row].append(item)
        if left := space - need:
            free[left].append(row)
            spaces |= 1 << left
    return rows


def between(rows: Batch, packed: Batch, order: np.ndarray) -> Batch:
    """Rows of plain text and packed ones as one batch.

    Args:
        rows: of text; one segment a row where they name none.
        packed: of `packed_batch`.
        order: (B,) where each row of the result is found, those of text counted first.
    """
    segments = rows.segments
    if segments is None:
        segments = torch.zeros_like(rows.tokens, dtype=torch.int32)
    assert packed.segments is not None, "of packed rows"
    joined = Batch(
        tokens=torch.cat([rows.tokens, packed.tokens]),
        targets=torch.cat([rows.targets, packed.targets]),
        mask=torch.cat([rows.mask, packed.mask]),
        segments=torch.cat([segments, packed.segments]),
        columns={
            name: torch.cat([values.new_zeros(rows.tokens.shape), values])
            for name, values in packed.columns.items()
        },
    )
    places = torch.from_numpy(order)
    return joined.map(lambda tensor: tensor[places])


def padded(batch: Batch, rows: int) -> Batch:
    """A packed batch with rows of padding alone behind its own, where it has fewer than `rows`."""
    lacking = rows - len(batch.tokens)
    if lacking <= 0:
        return batch
    longer = batch.map(lambda tensor: F.pad(tensor, (0, 0, 0, lacking)))
    assert longer.segments is not None, "of packed rows"
    longer.segments[-lacking:] = -1
    return longer


def packed_batches(
    items: Sequence[Item], seq_len: int, rows: int
) -> Iterator[tuple[list[list[int]], Batch]]:
    """Sequences in as few rows as hold them.

    Args:
        items: any number, each of at most `seq_len` positions.
        seq_len: T.
        rows: of a batch; the last one has fewer.

    Yields:
        The items in each row, in order, as indices into `items`; and the batch (rows, T).
    """
    packed = best_fit([len(item.ids) - 1 for item in items], seq_len)
    for start in range(0, len(packed), rows):
        chosen = packed[start : start + rows]
        yield chosen, packed_batch([[(items[n],) for n in row] for row in chosen], seq_len)


def packed_batch(rows: Sequence[Sequence[Bundle]], seq_len: int) -> Batch:
    """A batch of rows.

    Segments are numbered from 0 in each row, in order; so with bundles of two the even ones are
    the first of each pair. Padding has token 0, mask False and segment -1; a row without bundles
    is padding alone.

    Args:
        rows: the bundles of each row, together at most `seq_len` positions.
        seq_len: T.

    Returns:
        A batch (rows, T) with every column that an item has, 0 where an item lacks it.
    """
    shape = (len(rows), seq_len)
    tokens, targets = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    mask, segments = np.zeros(shape, bool), np.full(shape, -1, np.int32)
    names = sorted({name for row in rows for bundle in row for one in bundle for name in one[2]})
    columns = {name: np.zeros(shape, np.float32) for name in names}
    for row, bundles in enumerate(rows):
        start = 0
        for number, item in enumerate(item for bundle in bundles for item in bundle):
            place = (row, slice(start, start + len(item.ids) - 1))
            tokens[place], targets[place] = item.ids[:-1], item.ids[1:]
            mask[place], segments[place] = item.mask[1:], number
            for name, values in item.columns.items():
                columns[name][place] = values[1:]
            start += len(item.ids) - 1
    return Batch(
        tokens=torch.from_numpy(tokens),
        targets=torch.from_numpy(targets),
        mask=torch.from_numpy(mask),
        segments=torch.from_numpy(segments),
        columns={name: torch.from_numpy(values) for name, values in columns.items()},
    )
