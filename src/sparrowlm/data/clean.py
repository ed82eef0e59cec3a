"""What is removed from the text before anything else sees it.

One reading of the input decides for every document whether it stays; whatever reads it after that
(learning a vocabulary, encoding) passes over the rest. Documents are judged in their order in one
process, so nothing depends on the number of workers.

- Length: `min_chars` and `max_chars`, in characters of the whole document.
- Language: by `language.languages_of`, of a long document by its first part.
- exact: the text of an earlier document but for ASCII case and white space.
- near: exact, and then at least `near_threshold` like an earlier document by
  `likeness.agreement`, whether that one stays or not.

Memory: 46 bytes a document, 16 of them its hash, twice that for a moment; for near, 24 more, and
on the disk meanwhile 512 of signature and 8 for each of its bands (16 at a threshold of 0.8). A
document of over two million characters is read in pieces, and is an exact copy only of one that
was cut alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sparrowlm.config.schema import CleanConfig
from sparrowlm.data.language import LANGUAGES, languages_of
from sparrowlm.data.likeness import (
    BINS,
    agreement,
    band_keys,
    meetings,
    rows_of_band,
    same_text,
    signatures,
)
from sparrowlm.errors import ConfigError
from sparrowlm.files import disk_faults

STAYS, SHORT, LONG, LANGUAGE, EXACT, NEAR = range(6)
REASONS = ("stays", "too short", "too long", "another language", "exact copy", "near copy")
FACTS = np.dtype(
    [("hash", "<u8", 2), ("characters", "<u8"), ("line", "<u8"), ("source", "<u4"),
     ("starts", "?"), ("foreign", "?")]
)  # fmt: skip
"""What is remembered of a piece, and at the end of a document."""
SIGNATURE = np.dtype("<u4")
COMPARED = 1 << 13  # signatures looked at together


class Seen(NamedTuple):
    """A piece of a document and where the document stands."""

    text: str
    starts: bool
    source: int  # number of its file
    line: int


@dataclass(frozen=True)
class Cleaning:
    """What goes, and why."""

    verdicts: np.ndarray
    """(documents,) uint8: one of `REASONS` for every document of the input."""
    like: np.ndarray
    """(documents,) int64: the earlier document that a copy is like, else -1."""
    facts: np.ndarray
    """(documents,) of dtype `FACTS`."""


def wants_cleaning(config: CleanConfig) -> bool:
    """Whether anything is asked for."""
    return bool(config.dedup or config.min_chars or config.max_chars or config.languages)


def check_cleaning(config: CleanConfig) -> None:
    """
    Raises:
        ConfigError: an unknown language, or limits that leave nothing.
    """
    unknown = [name for name in config.languages if name not in LANGUAGES]
    if unknown:
        raise ConfigError(
            f"{unknown[0]!r} is not told apart",
            where="data.clean.languages",
            fix=f"choose from {', '.join(LANGUAGES)}",
        )
    if not 0 < config.near_threshold <= 1:
        raise ConfigError(
            f"is {config.near_threshold}, and must be above 0 and at most 1",
            where="data.clean.near_threshold",
            fix="0.8 takes out what shares four fifths of its pieces",
        )
    if 0 < config.max_chars < config.min_chars:
        raise ConfigError(
            f"is {config.max_chars}, below min_chars, {config.min_chars}: nothing would stay",
            where="data.clean.max_chars",
        )


def judge(loads: Iterable[list[Seen]], config: CleanConfig, work: Path) -> Cleaning:
    """Look at every document once, then decide.

    Args:
        loads: all pieces of all documents, in order, some at a time.
        config: what is asked for.
        work: an existing folder for what is needed meanwhile; left as it was.
    """
    marks = work / "clean.signatures"
    seen = [np.empty(0, FACTS)]
    try:
        with disk_faults(marks), marks.open("wb") as file:
            for load in loads:
                seen.append(_facts(load, config))
                if config.dedup == "near":
                    file.write(signatures([piece.text for piece in load]).astype(SIGNATURE).data)
        pieces = np.concatenate(seen)
        firsts = np.flatnonzero(pieces["starts"])
        facts = _whole(pieces, firsts)
        verdicts = _by_itself(facts, config)
        like = np.full(len(facts), -1, dtype=np.int64)
        if config.dedup:
            _exact(verdicts, like, facts["hash"])
        if config.dedup == "near" and len(facts):
            _near(verdicts, like, _Signatures(marks, pieces["starts"], firsts), config, work)
    finally:
        marks.unlink(missing_ok=True)
    return Cleaning(verdicts, like, facts)


def _facts(load: list[Seen], config: CleanConfig) -> np.ndarray:
    """(pieces,) of dtype `FACTS`."""
    found = np.zeros(len(load), FACTS)
    texts = [piece.text for piece in load]
    found["characters"] = list(map(len, texts))
    for name in ("starts", "source", "line"):
        found[name] = [getattr(piece, name) for piece in load]
    if config.dedup:
        hashes = b"".join(same_text(text.encode("utf-8", "surrogatepass")) for text in texts)
        found["hash"] = np.frombuffer(hashes, "<u8").reshape(-1, 2)
    if config.languages:
        found["foreign"] = [name not in config.languages for name in languages_of(texts)]
    return found


def _whole(pieces: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    """The facts of documents from those of their pieces: hashes and characters are added up, and
    the first piece decides the rest."""
    whole = pieces[firsts]
    if len(firsts) < len(pieces):
        for name in ("hash", "characters"):
            whole[name] = np.add.reduceat(pieces[name], firsts, axis=0)
    return whole


def _by_itself(facts: np.ndarray, config: CleanConfig) -> np.ndarray:
    """(documents,) uint8 verdicts that look at one document alone."""
    verdicts = np.full(len(facts), STAYS, dtype=np.uint8)
    verdicts[facts["foreign"]] = LANGUAGE
    if config.max_chars:
        verdicts[facts["characters"] > config.max_chars] = LONG
    verdicts[facts["characters"] < config.min_chars] = SHORT
    return verdicts


def _exact(verdicts: np.ndarray, like: np.ndarray, hashes: np.ndarray) -> None:
    """Of those that stay, mark every one whose hash (2 × 64 bits) an earlier one has."""
    left = np.flatnonzero(verdicts == STAYS)
    order = left[np.lexsort((hashes[left, 1], hashes[left, 0]))]  # stable: the earliest first
    ranked = hashes[order]
    same = np.concatenate([[False], (ranked[1:] == ranked[:-1]).all(axis=1)])[: len(order)]
    first = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
    verdicts[order[same]] = EXACT
    like[order[same]] = order[first[same]]


class _Signatures:
    """The signatures of documents, in a file of those of their pieces."""

    def __init__(self, path: Path, starts: np.ndarray, firsts: np.ndarray) -> None:
        self._pieces = np.memmap(path, SIGNATURE, mode="r+", shape=(len(starts), BINS))
        self._firsts = firsts
        # A document's is the smallest of its pieces', place by place.
        for piece in np.flatnonzero(~starts).tolist():
            own = int(firsts[np.searchsorted(firsts, piece) - 1])
            self._pieces[own] = np.minimum(self._pieces[own], self._pieces[piece])

    def of(self, documents: np.ndarray) -> np.ndarray:
        """(n, BINS) of the numbers (n,)."""
        return np.asarray(self._pieces[self._firsts[documents]])


def _near(
    verdicts: np.ndarray, like: np.ndarray, marks: _Signatures, config: CleanConfig, work: Path
) -> None:
    """Of those that stay, mark every one that is much like an earlier one."""
    left = np.flatnonzero(verdicts == STAYS)
    if not len(left):
        return
    rows = rows_of_band(config.near_threshold)
    path = work / "clean.bands"
    try:
        with disk_faults(path):
            shape = (BINS // rows, len(left))
            bands = np.memmap(path, "<u8", mode="w+", shape=shape)
        for start in range(0, len(left), COMPARED):
            some = left[start : start + COMPARED]
            bands[:, start : start + COMPARED] = band_keys(marks.of(some), rows)
        for band in range(len(bands)):
            for earlier, later in meetings(np.array(bands[band])):
                _compare(verdicts, like, marks, left[earlier], left[later], config.near_threshold)
        del bands  # Windows removes no mapped file
    finally:
        path.unlink(missing_ok=True)


def _compare(
    verdicts: np.ndarray,
    like: np.ndarray,
    marks: _Signatures,
    earlier: np.ndarray,
    later: np.ndarray,
    threshold: float,
) -> None:
    """Mark the later ones of pairs that are alike, those that go already left out."""
    fresh = verdicts[later] == STAYS
    earlier, later = earlier[fresh], later[fresh]
    for start in range(0, len(later), COMPARED):
        one, other = earlier[start : start + COMPARED], later[start : start + COMPARED]
        alike = agreement(marks.of(one), marks.of(other)) >= threshold
        verdicts[other[alike]] = NEAR
        like[other[alike]] = one[alike]
