"""Sources to loads, with what was met on the way."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sparrowlm.config.schema import DataConfig
from sparrowlm.data.clean import REASONS, STAYS, Cleaning, Seen
from sparrowlm.data.encode import Load
from sparrowlm.data.sources import Piece, Source, read_pieces
from sparrowlm.data.split import ENDS, HELD_OUT, STARTS, UNDECIDED, falls_out, held_groups
from sparrowlm.errors import DataError
from sparrowlm.files import disk_faults
from sparrowlm.text.documents import Rejected, format_of

LOAD_CHARACTERS = 1 << 19
LOAD_PIECES = 1 << 13
SHOWN = 20  # rejections kept in memory
EXAMPLES, EXAMPLE_CHARACTERS = 20, 200  # listed of what is removed for one reason


@dataclass
class Reader:
    """All sources as pieces of documents.

    Accepted, removed and rejected rows together are all rows: rows of files that have rows,
    documents of plain ones.
    """

    sources: list[Source]
    config: DataConfig
    rejections: Path | None = None
    """Where rejected rows are listed, one JSON object a line."""
    cleaning: Cleaning | None = None
    """Which documents are passed over."""
    removals: Path | None = None
    """Where the first of those are listed for each reason, one JSON object a line."""
    accepted: int = 0
    rejected: int = 0
    removed: Counter[str] = field(default_factory=Counter)
    """Documents passed over, by reason."""
    examples: dict[str, str] = field(default_factory=dict)
    """The first document passed over for each reason, and what it is like, as file:line."""
    read: int = 0
    """Bytes taken from the disk."""
    shown: list[str] = field(default_factory=list)
    """The first rejections, as file:line: reason."""
    parted: list[str] = field(default_factory=list)
    """Plain files in which a separator was found."""
    empty: list[str] = field(default_factory=list)
    """Files without a single row."""
    told: list[str] = field(default_factory=list)
    """Notes from before reading: what was passed over."""

    @property
    def rows(self) -> int:
        """All rows met: accepted, removed and rejected."""
        return self.accepted + self.removed.total() + self.rejected

    def pieces(self) -> Iterator[tuple[Source, Piece]]:
        """In the order of the sources.

        Raises:
            DataError: a bad row, unless they are skipped; a file that cannot be read.
        """
        stays = True
        for source in self.sources:
            rows = self.rows
            plain = format_of(source.path) == "plain"
            for piece in read_pieces(source, self.config, self._heard):
                if isinstance(piece, Rejected):
                    self._reject(piece)
                    continue
                first = rows == self.rows
                if first and plain and piece.starts and piece.line:
                    self.parted.append(str(source.path))
                if piece.starts:
                    stays = self._judged(source, piece)
                if stays:
                    yield source, piece
            if rows == self.rows:
                self.empty.append(str(source.path))

    def seen(self) -> Iterator[list[Seen]]:
        """Pieces together with their places, as cleaning looks at them."""
        numbers = {source: number for number, source in enumerate(self.sources)}
        for held in self._together():
            yield [Seen(each.text, each.starts, numbers[place], each.line) for place, each in held]

    def loads(self) -> Iterator[Load]:
        """Pieces together, each with its side."""
        side = 0
        for held in self._together():
            flags: list[int] = []
            for source, piece in held:
                if piece.starts:
                    side = self._side(source, piece)
                flags.append(STARTS * piece.starts | ENDS * piece.ends | side)
            yield Load([piece.text for _, piece in held], flags, self.read)

    def _together(self) -> Iterator[list[tuple[Source, Piece]]]:
        """Pieces until there are enough to be worth a worker's while."""
        held: list[tuple[Source, Piece]] = []
        size = 0
        for source, piece in self.pieces():
            held.append((source, piece))
            size += len(piece.text)
            if size >= LOAD_CHARACTERS or len(held) >= LOAD_PIECES:
                yield held
                held, size = [], 0
        if held:
            yield held

    def _judged(self, source: Source, piece: Piece) -> bool:
        """Count a new document; whether it stays."""
        if self.cleaning is not None:
            number = self.accepted + self.removed.total()
            reason = REASONS[self.cleaning.verdicts[number]]
            if reason != REASONS[STAYS]:
                self.removed[reason] += 1
                self._list_removed(source, piece, number, reason)
                return False
        self.accepted += 1
        return True

    def _list_removed(self, source: Source, piece: Piece, number: int, reason: str) -> None:
        """Write an example of what goes."""
        if self.cleaning is None or self.removals is None or self.removed[reason] > EXAMPLES:
            return
        text = piece.text[:EXAMPLE_CHARACTERS]
        entry = {"reason": reason, "source": str(source.path), "line": piece.line, "text": text}
        if (like := int(self.cleaning.like[number])) >= 0:
            place = self.cleaning.facts[like]
            entry["like"] = f"{self.sources[place['source']].path}:{place['line'] or 1}"
        places = [f"{source.path}:{piece.line or 1}", entry.get("like")]
        self.examples.setdefault(reason, " like ".join(filter(None, places)))
        _append(self.removals, entry)

    def _side(self, source: Source, piece: Piece) -> int:
        """The flag of a new document's side. Where its text decides and is whole, that is left
        to whoever encodes it."""
        if source.group:
            return HELD_OUT * (source.group in self._held)
        if piece.ends:
            return UNDECIDED
        return HELD_OUT * falls_out(piece.text.encode(), self.config.val_fraction)

    @cached_property
    def _held(self) -> frozenset[str]:
        sizes: dict[str, int] = {}
        for source in self.sources:
            sizes[source.group] = sizes.get(source.group, 0) + source.path.stat().st_size
        return held_groups(sizes, self.config.val_fraction)

    def _heard(self, taken: int) -> None:
        self.read += taken

    def _reject(self, row: Rejected) -> None:
        where = f"{row.source}:{row.line}"
        if not self.config.skip_bad:
            raise DataError(
                row.reason, where=where, fix="mend it, or skip and list such rows: --skip-bad"
            )
        self.rejected += 1
        if len(self.shown) < SHOWN:
            self.shown.append(f"{where}: {row.reason}")
        if self.rejections is not None:
            _append(self.rejections, row._asdict())


def _append(path: Path, entry: dict[str, Any]) -> None:
    line = json.dumps(entry, ensure_ascii=False).encode("utf-8", "backslashreplace")
    with disk_faults(path), path.open("ab") as file:
        file.write(line + b"\n")
