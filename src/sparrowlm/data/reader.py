"""Sources to loads, with what was met on the way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from sparrowlm.config.schema import DataConfig
from sparrowlm.data.encode import Load
from sparrowlm.data.sources import Piece, Source, read_pieces
from sparrowlm.data.split import ENDS, HELD_OUT, STARTS, UNDECIDED, falls_out, held_groups
from sparrowlm.errors import DataError
from sparrowlm.files import disk_faults
from sparrowlm.text.documents import Rejected, format_of

LOAD_CHARACTERS = 1 << 19
LOAD_PIECES = 1 << 13
SHOWN = 20  # rejections kept in memory


@dataclass
class Reader:
    """All sources as pieces of documents.

    Accepted and rejected rows together are all rows: rows of files that have
    rows, documents of plain ones.
    """

    sources: list[Source]
    config: DataConfig
    rejections: Path | None = None
    """Where rejected rows are listed, one JSON object a line."""
    accepted: int = 0
    rejected: int = 0
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

    def pieces(self) -> Iterator[tuple[Source, Piece]]:
        """In the order of the sources.

        Raises:
            DataError: a bad row, unless they are skipped; a file that cannot be read.
        """
        for source in self.sources:
            rows = self.accepted + self.rejected
            plain = format_of(source.path) == "plain"
            for piece in read_pieces(source, self.config, self._heard):
                if isinstance(piece, Rejected):
                    self._reject(piece)
                    continue
                first = rows == self.accepted + self.rejected
                if first and plain and piece.starts and piece.line:
                    self.parted.append(str(source.path))
                self.accepted += piece.starts
                yield source, piece
            if rows == self.accepted + self.rejected:
                self.empty.append(str(source.path))

    def loads(self) -> Iterator[Load]:
        """Pieces together until there is enough to be worth a worker's while."""
        texts: list[str] = []
        flags: list[int] = []
        size, side = 0, 0
        for source, piece in self.pieces():
            if piece.starts:
                side = self._side(source, piece)
            flags.append(STARTS * piece.starts | ENDS * piece.ends | side)
            texts.append(piece.text)
            size += len(piece.text)
            if size >= LOAD_CHARACTERS or len(texts) >= LOAD_PIECES:
                yield Load(texts, flags, self.read)
                texts, flags, size = [], [], 0
        if texts:
            yield Load(texts, flags, self.read)

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
            entry = json.dumps(row._asdict(), ensure_ascii=False)
            with disk_faults(self.rejections), self.rejections.open("ab") as file:
                file.write(entry.encode() + b"\n")
