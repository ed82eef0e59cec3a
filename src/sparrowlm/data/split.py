"""What is held out, decided by the text alone.

Three rules:

- hash: a document goes where a keyed hash of its text sends it, so the same text is never on both
  sides, and more data later moves nothing. Only the first MiB of a document is hashed, so that a
  document of any size is read in pieces and its side is known with the first.
- group: whole groups (`Source.group`) are held out, in the order of a hash of their names, where
  documents of one group resemble each other.
- tail: the end of the data by position, as nanoGPT does.

By hash makes no sense where a side would be empty or one document outweighs the rest; position
takes over then. Whether it does is known only after the last document, and nobody wants to read a
corpus twice: so tokens go to one spool in the order of the sources, with a table of what each
piece is, and are dealt out to the sides at the end (`writer.Spool`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sparrowlm.config.schema import DataConfig
from sparrowlm.errors import ConfigError, DataError

KEY = b"sparrow split 1"
HASHED = 1 << 20  # bytes of a document that decide
LARGEST = 0.05  # share of the bytes above which one document rules out a split by hash

STARTS, ENDS, HELD_OUT, UNDECIDED = 1, 2, 4, 8
"""Flags of a piece: it begins a document, ends one, is held out; its text has yet to decide."""

PIECE = np.dtype(
    [("tokens", "<u8"), ("bytes", "<u8"), ("characters", "<u8"), ("text", "<u8"), ("flags", "u1")]
)
"""One row of the table: a piece of a document, most often all of it; `text` is a hash of it."""


def falls_out(content: bytes, share: float) -> bool:
    """Whether a document of this UTF-8 text is held out.

    Args:
        content: at least its first `HASHED` bytes, or all of it.
        share: of documents held out, in [0, 1).
    """
    return _hash(content[:HASHED]) < share * 2**64


def _hash(content: bytes) -> int:
    """64 bits; Python's own hash differs from process to process."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8, key=KEY).digest(), "little")


def decided(flag: int, content: bytes, share: float) -> int:
    """The flag of a piece, its side decided by its text where that is still to be done."""
    if flag & UNDECIDED:
        flag ^= UNDECIDED
        if falls_out(content, share):
            flag |= HELD_OUT
    return flag


def held_groups(sizes: Mapping[str, int], share: float) -> frozenset[str]:
    """The groups that are held out: as nearly `share` of the bytes as whole groups make it.

    Groups are few and of all sizes, so each by its own hash would miss the share widely. They are
    gone through in the order of the hash of their names, and one that fits is taken.

    Args:
        sizes: bytes of each group.
        share: of the bytes held out, in [0, 1).

    Returns:
        At least one group and never all of them; none where there are fewer than two, or share
        is 0.
    """
    if len(sizes) < 2 or not share:
        return frozenset()
    order = sorted(sizes, key=lambda name: (_hash(name.encode()), name))
    goal, taken, held = share * sum(sizes.values()), 0, set()
    for name in order:
        if taken + sizes[name] / 2 <= goal:
            held.add(name)
            taken += sizes[name]
    if not held or len(held) == len(sizes):
        held = {min(order, key=lambda name: sizes[name])}
    return frozenset(held)


def check_share(config: DataConfig) -> None:
    """
    Raises:
        ConfigError: `val_fraction` is no share that leaves something to train on.
    """
    if not 0 <= config.val_fraction < 1:
        raise ConfigError(
            f"is {config.val_fraction}, and must be 0 or more and below 1",
            where="data.val_fraction",
            fix="0.1 holds out a tenth; 0 holds out nothing",
        )


@dataclass
class Tally:
    """Sums over all pieces, kept while they pass."""

    documents: int = 0
    bytes: int = 0
    characters: int = 0
    held_out: int = 0  # documents
    largest: int = 0  # bytes of the largest document
    _open: int = 0  # bytes so far of the document that has not ended

    def add(self, table: np.ndarray) -> None:
        """Count pieces: (pieces,) of dtype `PIECE`, in order."""
        flags, sizes = table["flags"], table["bytes"].astype(np.int64)
        starts = (flags & STARTS) > 0
        self.documents += int(starts.sum())
        self.held_out += int((starts & ((flags & HELD_OUT) > 0)).sum())
        self.bytes += int(sizes.sum())
        self.characters += int(table["characters"].sum())
        if starts.all() and ((flags & ENDS) > 0).all():  # whole documents, as nearly always
            self.largest = max(self.largest, int(sizes.max(initial=0)))
            return
        for size, flag in zip(sizes.tolist(), flags.tolist(), strict=True):
            self._open = size if flag & STARTS else self._open + size
            self.largest = max(self.largest, self._open)


class Plan(NamedTuple):
    """How the data is split, and why not as asked, where that is so."""

    rule: str  # hash, group, tail, or none where nothing is held out
    at_line_end: bool = False  # tail: a cut inside a document moves to a line end
    reason: str = ""


def decide(tally: Tally, config: DataConfig, grouped: bool) -> Plan:
    """The rule that fits the data, once all of it has been seen."""
    if not config.val_fraction:
        return Plan("none")
    if config.split == "tail":
        return Plan("tail")
    if tally.documents == 1:
        return Plan("tail", True, "the data is one document")
    if grouped:
        both = 0 < tally.held_out < tally.documents
        return Plan("group") if both else Plan("tail", True, "only one group holds text")
    if tally.held_out == 0:
        return Plan("tail", True, "by hash none of the documents would be held out")
    if tally.held_out == tally.documents:
        return Plan("tail", True, "by hash all of the documents would be held out")
    share = tally.largest / max(1, tally.bytes)
    if share > LARGEST:
        return Plan("tail", True, f"one document is {share:.0%} of the bytes")
    return Plan("hash")


class Cut(NamedTuple):
    """Where the tail begins: before piece `piece`, or `inside` characters into it."""

    piece: int
    inside: int | None  # None: at the border of a document


def find_cut(table: np.ndarray, tally: Tally, share: float) -> Cut:
    """Where to cut by position, at (1 - share) of the characters.

    A document of at most 5 % of the bytes stays whole: the cut moves to its nearer border that
    leaves neither side empty.

    Args:
        table: (pieces,) of dtype `PIECE`; may be a memory map.
        tally: its sums.
        share: of characters held out.

    Raises:
        DataError: too little text for two sides.
    """
    target = int(tally.characters * (1 - share))
    if tally.characters < 2 or not 0 < target < tally.characters:
        raise DataError(
            f"{tally.characters} characters are too few to hold out {share:.0%} of them",
            where="data.val_fraction",
            fix="use more text, or data.val_fraction = 0",
        )
    piece, before = _locate(table, target)
    first, last = piece, piece
    while not table[first]["flags"] & STARTS:
        first -= 1
    while not table[last]["flags"] & ENDS:
        last += 1
    document = table[first : last + 1]
    if int(document["bytes"].sum()) > LARGEST * tally.bytes:
        at_border = piece == first and target == before
        return Cut(piece, None if at_border else target - before)
    start = before - int(table[first:piece]["characters"].sum())
    stop = start + int(document["characters"].sum())
    begin_nearer = target - start <= stop - target
    if start and (begin_nearer or stop == tally.characters):
        return Cut(first, None)
    return Cut(last + 1, None)


def _locate(table: np.ndarray, target: int) -> tuple[int, int]:
    """The piece that holds character number `target`, and the characters before that piece."""
    before, step = 0, 1 << 16
    for first in range(0, len(table), step):
        ends = before + np.cumsum(table[first : first + step]["characters"], dtype=np.int64)
        if target < ends[-1]:
            index = int(np.searchsorted(ends, target, side="right"))
            return first + index, int(ends[index - 1]) if index else before
        before = int(ends[-1])
    raise AssertionError("the target lies inside the table")


def line_end(text: str, position: int) -> int:
    r"""The position behind the last `\n` before `position`, or behind the first one after it, or
    `position` where there is none; never the very end.

    >>> line_end("ab\ncd\nef", 4)
    3
    """
    before = text.rfind("\n", 0, position)
    if before >= 0:
        return before + 1
    after = text.find("\n", position, len(text) - 1)
    return after + 1 if after >= 0 else position
