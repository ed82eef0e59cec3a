"""Rows of conversations as samples to train on, and what was met on the way.

    rows -> conversations -> pieces -> ids and mask -> cut to a row

What does not go the straight way is counted and named by file and line. accepted + rejected = rows,
and of the accepted those that are left out are told by reason.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sparrowlm.data.sources import Source
from sparrowlm.errors import DataError
from sparrowlm.text.chat import ChatFormat, Encoded, Part
from sparrowlm.text.conversations import (
    Found,
    Labelled,
    Pair,
    chat_of,
    labelled_of,
    pair_of,
    read_values,
)
from sparrowlm.text.documents import format_of
from sparrowlm.text.rows import Rejected
from sparrowlm.text.turns import Conversation, dump, empty_answers, order_fault

BATCH = 512  # rows that are encoded together
CUT = "cut at the context"
CUT_AWAY = "left out: the context ends before the answer"
TOO_LONG = "left out: longer than a row"
UNANSWERED = "left out: no answer"
EMPTY = "an empty answer"
DISORDER = "roles out of order"


Pieces = list[tuple[list[Part], int]]
"""Of each side of a sample: its pieces, and how many of its messages are prompt."""


class Kind(NamedTuple):
    """What a row holds."""

    parse: Callable[[dict[str, Any]], Any]
    bundle_size: int


KINDS: dict[str, Kind] = {
    "chats": Kind(chat_of, 1),
    "pairs": Kind(pair_of, 2),
    "labelled": Kind(labelled_of, 1),
}


def kind_of(sources: list[Source], kinds: tuple[str, ...]) -> str:
    """The first of `kinds` that the first readable row is of; the last where none is, or where
    rows are tokens already."""
    if format_of(sources[0].path) == "tokens":
        return kinds[-1]
    for row in read_values(sources[0].path, lambda row: row):
        if isinstance(row, Found):
            return next((kind for kind in kinds if _is(row.value, kind)), kinds[-1])
    return kinds[-1]


def _is(row: dict[str, Any], kind: str) -> bool:
    try:
        KINDS[kind].parse(row)
    except DataError:
        return False
    return True


class Sample(NamedTuple):
    """What becomes one bundle, and where it is from."""

    sides: tuple[Conversation, ...]
    label: int
    """1: wanted, 0: not; of chats and pairs 1."""
    source: str
    line: int
    content: bytes = b""
    """Of a row that holds no conversation but ids: all of it."""

    @property
    def place(self) -> str:
        """file:line."""
        return f"{self.source}:{self.line}"

    def hash(self) -> int:
        """What decides the split: of pairs their prompt, otherwise all of it. 64 bits."""
        return int.from_bytes(hashlib.sha256(self._shown()).digest()[:8], "little")

    def _shown(self) -> bytes:
        if self.content:
            return self.content
        messages = self.sides[0].messages
        if len(self.sides) > 1 and self.sides[0].given:
            messages = messages[: self.sides[0].given]
        return dump(messages).encode()


@dataclass
class Survey:
    """Rows as samples, and what was met on the way."""

    sources: list[Source]
    kind: str
    skip_bad: bool = False
    accepted: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    noted: list[tuple[str, int, str]] = field(default_factory=list)
    """(file, line, what)."""
    read: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """How often each thing was noted."""
        return dict(Counter(what for _, _, what in self.noted))

    def samples(self) -> Iterator[Sample]:
        """Every row that can be trained on.

        Raises:
            DataError: a bad row, unless `skip_bad`.
        """
        for source in self.sources:
            for row in read_values(source.path, KINDS[self.kind].parse, self._on_read):
                if isinstance(row, Rejected):
                    self.reject(row)
                    continue
                self.accepted += 1
                sample = _sample(row)
                if self._answered(sample):
                    yield sample

    def reject(self, row: Rejected, why: str = "", fix: str = "") -> None:
        """Count and keep a bad row.

        Args:
            row: which, and what is wrong with it.
            why: it is a fault, as of an error.
            fix: of the row, as of an error.

        Raises:
            DataError: bad rows are not to be skipped.
        """
        if not self.skip_bad:
            raise DataError(
                row.reason,
                where=f"{row.source}:{row.line}",
                why=why,
                fix=f"{fix or 'mend the row'}, or count and list such rows: data.skip_bad = true",
            )
        self.rejected.append(row)

    def take_back(self, sample: Sample, fault: DataError) -> None:
        """Reject a row that was accepted, and cannot be written as ids.

        Raises:
            DataError: bad rows are not to be skipped.
        """
        self.accepted -= 1
        self.reject(Rejected(sample.source, sample.line, fault.what), fault.why, fault.fix)

    def note(self, sample: Sample, what: str) -> None:
        """Keep what a person should know of a row."""
        self.noted.append((sample.source, sample.line, what))

    def told(self) -> str:
        """What was not as it should be, with an example of each."""
        first: dict[str, str] = {}
        for source, line, what in self.noted:
            first.setdefault(what, f"{Path(source).name}:{line}")
        counts = self.counts
        found = [f"{what}: {counts[what]:,} (such as {at})" for what, at in first.items()]
        if self.rejected:
            row = self.rejected[0]
            example = f"{Path(row.source).name}:{row.line}: {row.reason}"
            found.append(f"rows rejected: {len(self.rejected):,} (such as {example})")
        return "; ".join(found)

    def _answered(self, sample: Sample) -> bool:
        if any(order_fault(side.messages) for side in sample.sides):
            self.note(sample, DISORDER)
        for side in sample.sides:
            empty, answers = empty_answers(side)
            if empty == answers:
                self.note(sample, UNANSWERED)
                return False
        if any(empty_answers(side)[0] for side in sample.sides):
            self.note(sample, EMPTY)
        return True

    def _on_read(self, taken: int) -> None:
        self.read += taken


def _sample(row: Found[Any]) -> Sample:
    match row.value:
        case Pair(chosen, rejected):
            return Sample((chosen, rejected), 1, row.source, row.line)
        case Labelled(conversation, wanted):
            return Sample((conversation,), int(wanted), row.source, row.line)
        case conversation:
            return Sample((conversation,), 1, row.source, row.line)


def encoded(survey: Survey, chat: ChatFormat) -> Iterator[tuple[Sample, list[Encoded]]]:
    """Every sample with the ids of its sides, uncut.

    Raises:
        DataError: a row that the template refuses, or whose text the tokenizer changes, unless bad
            rows are skipped.
    """
    samples = survey.samples()
    while some := list(islice(samples, BATCH)):
        kept: list[tuple[Sample, Pieces]] = []
        for sample in some:
            try:
                pieces = [(chat.parts(side), side.given) for side in sample.sides]
            except DataError as fault:
                survey.take_back(sample, fault)
            else:
                kept.append((sample, pieces))
        yield from _together(survey, chat, kept)


def _together(
    survey: Survey, chat: ChatFormat, kept: list[tuple[Sample, Pieces]]
) -> Iterator[tuple[Sample, list[Encoded]]]:
    """Samples encoded in one go; one by one where it fails, so that only the faulty are lost."""
    try:
        done = iter(chat.encode_parts([side for _, pieces in kept for side in pieces]))
    except DataError as fault:
        if len(kept) == 1:
            survey.take_back(kept[0][0], fault)
            return
        for one in kept:
            yield from _together(survey, chat, [one])
        return
    for sample, pieces in kept:
        yield sample, [next(done) for _ in pieces]


def fit(sides: list[Encoded], seq_len: int) -> tuple[list[Encoded], str]:
    """The sides as they go into a row, and what had to be done to them; none where they cannot.

    What follows the last learned id teaches nothing and goes. One sequence is cut at the row's end
    while some of its answer remains. Of two that are compared, neither may be.

    >>> one = Encoded(np.arange(9), np.arange(9) > 6)
    >>> [len(side.ids) for side in fit([one], 7)[0]], fit([one], 6)[1]
    ([8], 'cut at the context')
    """
    ended = [Encoded(ids[: _end(mask)], mask[: _end(mask)]) for ids, mask in sides]
    if any(len(side.ids) < 2 for side in ended):
        return [], UNANSWERED
    if sum(len(side.ids) - 1 for side in ended) <= seq_len:
        return ended, ""
    if len(ended) > 1:
        return [], TOO_LONG
    ids, mask = ended[0].ids[: seq_len + 1], ended[0].mask[: seq_len + 1]
    return ([Encoded(ids, mask)], CUT) if mask.any() else ([], CUT_AWAY)


def _end(mask: np.ndarray) -> int:
    """Behind the last learned id; 0 without one."""
    found = np.flatnonzero(mask)
    return int(found[-1]) + 1 if len(found) else 0
