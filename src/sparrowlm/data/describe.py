"""What is in a dataset: counts, lengths of documents, rows to read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sparrowlm.data.shards import Dataset, Tokens
    from sparrowlm.text.tokenizer import Tokenizer

EXACT = 1 << 16  # tokens of a document below which its length is counted exactly
WINDOW = 1 << 20  # documents, or tokens, looked at together


@dataclass(frozen=True)
class Lengths:
    """How long the documents of a split are, in tokens; end-of-text counts.

    Percentiles are exact below 65,536 tokens, and at most that.
    """

    counts: np.ndarray  # (EXACT + 1,): documents of each length, the last of all longer ones
    longest: int

    @property
    def documents(self) -> int:
        return int(self.counts.sum())

    @property
    def shortest(self) -> int:
        return int(np.argmax(self.counts > 0))

    def percentile(self, share: float) -> int:
        """The length that `share` of the documents do not exceed."""
        wanted = max(1, int(np.ceil(share * self.documents)))
        return int(np.searchsorted(np.cumsum(self.counts), wanted))

    def bins(self) -> list[tuple[int, int, int]]:
        """(from, to, documents) by powers of two, from the shortest to the longest."""
        found = []
        low = 1
        while low <= self.longest:
            high = 2 * low
            inside = self.counts[low:high] if low < EXACT else self.counts[EXACT:]
            found.append((low, high - 1 if low < EXACT else self.longest, int(inside.sum())))
            if low >= EXACT:
                break
            low = high
        while found and not found[0][2]:
            found.pop(0)
        return found


def document_lengths(tokens: Tokens, eot_id: int | None) -> Lengths | None:
    """Lengths of a split's documents; None where nothing says where they end.

    Args:
        tokens: the split. Without its document starts, end-of-text tokens tell.
        eot_id: of the tokenizer; None where there is none.
    """
    if tokens.document_starts is None and eot_id is None:
        return None
    counts, longest = np.zeros(EXACT + 1, np.int64), 0
    for lengths in _lengths(tokens, eot_id):
        counts += np.bincount(np.minimum(lengths, EXACT), minlength=EXACT + 1)
        longest = max(longest, int(lengths.max(initial=0)))
    return Lengths(counts, longest)


def _lengths(tokens: Tokens, eot_id: int | None) -> Iterator[np.ndarray]:
    starts = tokens.document_starts
    if starts is not None:
        for first in range(0, len(starts), WINDOW):
            ends = starts[first + 1 : first + WINDOW + 1].astype(np.int64)
            if first + WINDOW >= len(starts):
                ends = np.append(ends, len(tokens))
            yield ends - starts[first : first + WINDOW].astype(np.int64)
        return
    begins = done = 0
    for piece in tokens.pieces(WINDOW):
        ends = done + 1 + np.flatnonzero(piece == eot_id)
        yield np.diff(ends, prepend=begins)
        begins, done = int(ends[-1]) if len(ends) else begins, done + len(piece)
    if done > begins:
        yield np.array([done - begins])


def text_bytes(dataset: Dataset, name: str) -> int | None:
    """UTF-8 bytes of a split's text; counted from the tokens where the dataset does not say."""
    known = dataset.description["splits"][name].get("bytes")
    if known is not None or dataset.tokenizer is None:
        return known
    table = np.zeros(dataset.vocab_size, np.int64)
    lengths = dataset.tokenizer.byte_lengths()
    table[: len(lengths)] = lengths
    tokens = dataset.train if name == "train" else dataset.val
    return 0 if tokens is None else sum(int(table[p].sum()) for p in tokens.pieces(WINDOW))


def random_starts(tokens: Tokens, rows: int, length: int, seed: int) -> list[int]:
    """Where `rows` rows of `length` tokens start, anywhere in the split, in order."""
    room = max(0, len(tokens) - length) + 1
    found = np.random.default_rng(seed).integers(0, room, rows)
    return sorted(int(start) for start in found)


@dataclass(frozen=True)
class Span:
    """Part of a row: text, one special token, or the border before a document."""

    kind: str  # text, special, border
    text: str


def spans(ids: np.ndarray, borders: frozenset[int], tokenizer: Tokenizer) -> Iterator[Span]:
    """A row of (length,) token ids as text, with special tokens and borders of documents apart.

    Args:
        ids: of the row.
        borders: indices into the row at which a document starts.
        tokenizer: of the dataset.
    """
    names = {id: name for name, id in tokenizer.special_ids.items()}
    held = bytearray()
    for place, id in enumerate(ids.tolist()):
        if held and (place in borders or id in names):
            yield Span("text", _read(bytes(held)))
            held.clear()
        if place in borders:
            yield Span("border", "")
        if id in names:
            yield Span("special", names[id])
        else:
            held += tokenizer.token_bytes(id)
    if held:
        yield Span("text", _read(bytes(held)))


def _read(content: bytes) -> str:
    """Text from bytes; what is cut off at a row's edge shows as its bytes."""
    return content.decode("utf-8", errors="backslashreplace")
