"""Tokens to batches, as functions of the step.

`TokenStream.batch` gives the same rows for the same arguments, for ever: there is no position to
save, so resume is an integer, and a change of world size slices the same global batch otherwise.
Shapes: B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from sparrowlm.batch import Batch
from sparrowlm.data.shards import Tokens
from sparrowlm.errors import DataError
from sparrowlm.runtime import derived_seed

_ROUNDS = 6


class TokenStream:
    """Rows of `seq_len` tokens in a new order every epoch.

    The tokens are a ring: the first follows the last. Epoch e cuts it into `rows_per_epoch` rows
    that do not overlap, from a start of its own (0 in the first epoch, below `seq_len` later), and
    visits them in an order of its own. Global row g is row g % rows_per_epoch of epoch
    g // rows_per_epoch, and step s takes the global rows [s·rows, (s+1)·rows).

    Only epochs that start past 0 have a row that crosses from the last token to the first. It is
    as if the first document followed the last, as every other document does its own.

    Args:
        tokens: one split.
        seq_len: T.
        rows: rows of a step, over all ranks.
        seed: of starts and orders.
        eot_id: the end-of-text token; needed for `document_mask`.
        document_mask: number the documents of a row in `Batch.segments`.

    Raises:
        DataError: less than one row of data, or documents without an end-of-text token.
    """

    def __init__(
        self,
        tokens: Tokens,
        seq_len: int,
        rows: int,
        seed: int,
        eot_id: int | None = None,
        document_mask: bool = False,
    ) -> None:
        _check(tokens, seq_len + 1, eot_id, document_mask)
        self.tokens, self.seq_len, self.rows, self.seed = tokens, seq_len, rows, seed
        self.separator = eot_id if document_mask else None
        self.rows_per_epoch = (len(tokens) - 1) // seq_len

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The rows of one rank in one step, B = about rows / world_size.

        Concatenated over the ranks they are the rows of the step, whatever the world size.
        """
        rows = np.arange(*rank_rows(step, self.rows, rank, world_size), dtype=np.int64)
        return batch_of(self.read(rows), self.separator)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """(B, T + 1) ids of the global `rows` (B,)."""
        return self.tokens.rows(self._starts(rows), self.seq_len + 1)

    def _starts(self, rows: np.ndarray) -> np.ndarray:
        """(B,) positions where the global `rows` (B,) start."""
        epochs, within = np.divmod(rows, self.rows_per_epoch)
        starts = np.empty_like(rows)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            seed = derived_seed(self.seed, epoch)
            offset = seed % self.seq_len if epoch else 0
            order = permute(within[chosen], self.rows_per_epoch, seed)
            starts[chosen] = (order * self.seq_len + offset) % len(self.tokens)
        return starts


def rank_rows(step: int, rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """The first global row of a rank in a step of `rows` rows, and the one behind its last."""
    first = step * rows + rank * rows // world_size
    return first, step * rows + (rank + 1) * rows // world_size


def windows(
    tokens: Tokens,
    seq_len: int,
    rows: int,
    limit: int = 0,
    eot_id: int | None = None,
    document_mask: bool = False,
    stride: int = 0,
) -> Iterator[Batch]:
    """Batches for evaluation: every token but the first is a target exactly once.

    Every batch has the same shape, so that a compiled model sees one: what fills the last row and
    the last batch has mask False and segment -1.

    Windows side by side begin with no context. With a `stride` they overlap, and what an earlier
    one counted is context: but for those of the first window, a target has at least
    seq_len - stride + 1 tokens before it, for seq_len / stride times the work.

    Args:
        tokens: one split.
        seq_len: T.
        rows: B, or fewer where the split has fewer windows.
        limit: windows to measure, evenly over the split; 0: all.
        eot_id, document_mask: as in `TokenStream`.
        stride: positions from one window to the next, 1 to seq_len; 0: seq_len.

    Raises:
        DataError: fewer than two tokens, or documents without an end-of-text token.
    """
    _check(tokens, 2, eot_id, document_mask)
    stride = stride or seq_len
    total = window_count(tokens, seq_len, stride=stride)
    count = min(limit, total) if limit else total
    chosen = np.arange(count, dtype=np.int64) * total // count
    size = min(rows, count)
    separator = eot_id if document_mask else None
    for first in range(0, count, size):
        starts = chosen[first : first + size] * stride
        yield _padded(tokens, starts, seq_len, size, separator, seq_len - stride)


def window_count(tokens: Tokens, seq_len: int, limit: int = 0, stride: int = 0) -> int:
    """How many windows `windows` measures."""
    total = 1 + max(0, -(-(len(tokens) - 1 - seq_len) // (stride or seq_len)))
    return min(limit, total) if limit else total


def permute(rows: np.ndarray, size: int, seed: int) -> np.ndarray:
    """(B,) int64: where a seeded permutation of range(size) sends each of `rows`.

    A Feistel network over the bits of `size`, walked until it lands inside (Black & Rogaway 2002,
    "Ciphers with arbitrary finite domains"): no state, no table of the size of the data, and the
    order never changes with a version of numpy.
    """
    bits = max(2, (size - 1).bit_length())
    keys = np.array([derived_seed(seed, number) for number in range(_ROUNDS)], dtype=np.uint64)
    values = rows.astype(np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        values[outside] = _feistel(values[outside], bits, keys)
        outside = values >= size
    return values.astype(np.int64)


def _feistel(values: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    """A bijection of [0, 2**bits). The halves may differ by one bit; they swap every round."""
    low, high = bits // 2, bits - bits // 2
    for key in keys:
        left, right = values >> np.uint64(low), values & np.uint64((1 << low) - 1)
        left ^= _mix(right ^ key) & np.uint64((1 << high) - 1)
        values = (right << np.uint64(high)) | left
        low, high = high, low
    return values


def _mix(values: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer; products wrap at 64 bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def batch_of(found: np.ndarray, separator: int | None) -> Batch:
    """A batch from (B, T + 1) ids."""
    tokens = torch.from_numpy(found[:, :-1].copy())
    return Batch(
        tokens=tokens,
        targets=torch.from_numpy(found[:, 1:].copy()),
        mask=torch.ones_like(tokens, dtype=torch.bool),
        segments=None if separator is None else _segments(tokens, separator),
        columns={},
    )


def _segments(tokens: torch.Tensor, separator: int) -> torch.Tensor:
    """(B, T) int32: which document of its row each position belongs to.

    A segment starts at an end-of-text token, which is so both the last target of the document
    before it and the first input of its own. Every token stays a target once, and a document
    alone is [EOT, t0 … tn] predicting [t0 … tn, EOT].
    """
    starts = tokens == separator
    starts[:, 0] = False
    return starts.cumsum(dim=1, dtype=torch.int32)


def _padded(
    tokens: Tokens,
    starts: np.ndarray,
    seq_len: int,
    rows: int,
    separator: int | None,
    context: int = 0,
) -> Batch:
    """A batch of exactly (rows, seq_len) from the windows at `starts`, the rest masked, and so
    are the first `context` targets of every window but the first of the split."""
    found = np.zeros((rows, seq_len + 1), dtype=np.int64)
    lengths = np.zeros(rows, dtype=np.int64)
    last = int(starts[-1])
    inside = min(seq_len + 1, len(tokens) - last)
    found[: len(starts) - 1] = tokens.rows(starts[:-1], seq_len + 1)
    found[len(starts) - 1, :inside] = tokens.read(last, inside)
    lengths[: len(starts)] = seq_len
    lengths[len(starts) - 1] = inside - 1
    batch = batch_of(found, separator)
    mask = torch.from_numpy(np.arange(seq_len) < lengths[:, None])
    if batch.segments is not None:
        batch.segments.masked_fill_(~mask, -1)
    mask[: len(starts), :context] &= torch.from_numpy(starts == 0)[:, None]
    return batch._replace(mask=mask)


def _check(tokens: Tokens, needed: int, eot_id: int | None, document_mask: bool) -> None:
    if len(tokens) < needed:
        where = str(tokens.paths[0].parent) if tokens.paths else ""
        raise DataError(
            f"{len(tokens)} tokens do not fill one row, which takes {needed}",
            where=where,
            fix="use more text, or a smaller train.seq_len",
        )
    if document_mask and eot_id is None:
        raise DataError(
            "documents cannot be told apart: the tokenizer has no <|endoftext|>",
            where="data.document_mask",
            fix="set it to false, or use a bpe or bytes tokenizer",
        )
