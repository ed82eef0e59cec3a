"""Sequences on disk and the stream of rows that they are packed into.

A prepared set of sequences is a folder:

    sequences.json            the facts: dtype, bundle size, tokenizer fingerprint, counts
    train-ids.bin             token ids, uint16 or uint32, one sequence after the other
    train-mask.u8             1 where the id is to be learned
    train-starts.u64          where each sequence begins, and the end of the last
    val-ids.bin, val-mask.u8, val-starts.u64
    tokenizer/
    manifest.json             hashes, written last

Chats are bundles of one sequence, preferences of two: chosen, then rejected.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sparrowlm.batch import Batch
from sparrowlm.data.packing import Bundle, Item, best_fit, packed_batch
from sparrowlm.data.prompts import PromptDataset
from sparrowlm.data.shards import Dataset
from sparrowlm.data.streams import permute, rank_rows
from sparrowlm.errors import DataError
from sparrowlm.runtime import derived_seed

if TYPE_CHECKING:
    from sparrowlm.text.tokenizer import Tokenizer

FACTS = "sequences.json"


class Sequences:
    """One split.

    Args:
        ids: (n,) token ids of all sequences, one after the other.
        mask: (n,) uint8 or bool, where an id is to be learned.
        starts: (sequences + 1,) where each begins, and the end of the last.
        bundle_size: sequences that belong together.
        columns: further values of every id, each (n,) float32, such as a reference's
            log-probabilities.
    """

    def __init__(
        self,
        ids: np.ndarray,
        mask: np.ndarray,
        starts: np.ndarray,
        bundle_size: int = 1,
        columns: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.ids, self.mask, self.starts, self.bundle_size = ids, mask, starts, bundle_size
        self.columns = dict(columns or {})

    def __len__(self) -> int:
        """How many bundles there are."""
        return (len(self.starts) - 1) // self.bundle_size

    def with_columns(self, columns: Mapping[str, np.ndarray]) -> Sequences:
        """The same sequences with more values of every id."""
        columns = {**self.columns, **columns}
        return Sequences(self.ids, self.mask, self.starts, self.bundle_size, columns)

    def lengths(self) -> np.ndarray:
        """(bundles,) int64: the positions that each takes of a row."""
        sizes = np.diff(self.starts.astype(np.int64)) - 1
        return sizes.reshape(-1, self.bundle_size).sum(1)

    def bundle(self, index: int) -> Bundle:
        """The sequences of one bundle."""
        first = index * self.bundle_size
        return tuple(self._item(number) for number in range(first, first + self.bundle_size))

    def _item(self, number: int) -> Item:
        place = slice(int(self.starts[number]), int(self.starts[number + 1]))
        columns = {name: values[place] for name, values in self.columns.items()}
        return Item(self.ids[place].astype(np.int64), self.mask[place].astype(bool), columns)


@dataclass(frozen=True)
class SequenceDataset:
    """Sequences to train on, sequences held out, and what they mean."""

    train: Sequences
    val: Sequences | None
    tokenizer: Tokenizer
    vocab_size: int
    eot_id: int | None
    fingerprint: str
    description: dict[str, Any]
    replay: Dataset | None = None
    """Text that is trained on beside the sequences."""
    mismatched: dict[str, Sequences] = field(default_factory=dict)
    """kto: what `data/mismatch.py` makes of "train" and of "val"."""


AnyDataset = Dataset | SequenceDataset | PromptDataset


class PackedStream:
    """Rows of whole bundles, in a new order every epoch.

    Which bundles share a row is decided once, by their lengths and the seed; which rows a step
    takes is a function of the step, as of `TokenStream`.

    Args:
        sequences: one split.
        seq_len: T.
        rows: rows of a step, over all ranks.
        seed: of who shares a row, and of the order.

    Raises:
        DataError: no bundle, or one that is longer than a row.
    """

    def __init__(self, sequences: Sequences, seq_len: int, rows: int, seed: int) -> None:
        self.sequences, self.seq_len, self.rows, self.seed = sequences, seq_len, rows, seed
        self.packed = pack(sequences, seq_len, seed)
        self.rows_per_epoch = len(self.packed)

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The rows of one rank in one step, B = about rows / world_size."""
        return self.read(np.arange(*rank_rows(step, self.rows, rank, world_size), dtype=np.int64))

    def read(self, rows: np.ndarray) -> Batch:
        """The global `rows` (B,)."""
        found = [[self.sequences.bundle(one) for one in row] for row in self._bundles(rows)]
        return packed_batch(found, self.seq_len)

    def bundles(self, step: int, rank: int = 0, world_size: int = 1) -> list[list[int]]:
        """The indices of the bundles in each of the rows that `batch` gives."""
        rows = np.arange(*rank_rows(step, self.rows, rank, world_size), dtype=np.int64)
        return self._bundles(rows)

    def _bundles(self, rows: np.ndarray) -> list[list[int]]:
        epochs, within = np.divmod(rows, self.rows_per_epoch)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            seed = derived_seed(self.seed, epoch)
            within[chosen] = permute(within[chosen], self.rows_per_epoch, seed)
        return [self.packed[row] for row in within]

    @property
    def padding(self) -> float:
        """The share of positions that packing leaves empty."""
        return 1 - int(self.sequences.lengths().sum()) / (self.rows_per_epoch * self.seq_len)


def pack(sequences: Sequences, seq_len: int, seed: int) -> list[list[int]]:
    """The bundles of each row: best fit, bundles of one length in an order of the seed's.

    Raises:
        DataError: no bundle, or one that is longer than a row.
    """
    lengths = sequences.lengths()
    if not len(lengths):
        raise DataError("there is nothing to train on", fix="use more data")
    if (longest := int(lengths.max())) > seq_len:
        raise DataError(
            f"what belongs together takes {longest} positions, and a row holds {seq_len}",
            where="train.seq_len",
            fix="raise it, and model.max_seq_len with it",
        )
    order = permute(np.arange(len(lengths)), len(lengths), seed)
    rows = best_fit(lengths[order].tolist(), seq_len)
    return [[int(order[place]) for place in row] for row in rows]


def packed_windows(
    sequences: Sequences, seq_len: int, rows: int, limit: int = 0
) -> Iterator[Batch]:
    """Batches for evaluation: every sequence once, in batches of one shape.

    Args:
        sequences: one split.
        seq_len: T.
        rows: B.
        limit: rows to measure, evenly over the split; 0: all.
    """
    packed = pack(sequences, seq_len, seed=0)
    count = min(limit, len(packed)) if limit else len(packed)
    chosen = [packed[index * len(packed) // count] for index in range(count)]
    size = min(rows, count)
    for first in range(0, count, size):
        found = [[sequences.bundle(one) for one in row] for row in chosen[first : first + size]]
        yield packed_batch(found + [[]] * (size - len(found)), seq_len)
