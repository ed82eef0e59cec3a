"""Files in, pieces of documents out.

A document that is read whole would take the memory of the largest file, so long plain text comes
in pieces of about two million characters, cut where tokenizers cut as well: behind a line end that
stands between two characters that are not white space.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sparrowlm.config.schema import DataConfig
from sparrowlm.errors import DataError
from sparrowlm.text.documents import (
    END_OF_TEXT,
    Document,
    Rejected,
    cut_text,
    decode_file,
    find_inputs,
    is_json_lines,
    read_rows,
)

PIECE_CHARACTERS = 1 << 21
_SAFE = re.compile(r"(?<=\S\n)(?=\S)")


@dataclass(frozen=True)
class Source:
    """One file of text."""

    path: Path
    group: str = ""
    """Documents of one group are held out together; "": each by its own text."""


class Piece(NamedTuple):
    """A document, or a part of a long one."""

    text: str
    line: int  # 1-based line on which the document starts; 0: the whole file is this document
    starts: bool
    ends: bool


def as_sources(inputs: Sequence[str | Path | Source]) -> list[Source]:
    """Files, folders and globs as sources; sources as they are.

    Raises:
        DataError: a path that is nothing; some sources with a group and some without.
    """
    plain = [str(given) for given in inputs if not isinstance(given, Source)]
    found = [Source(path) for path in find_inputs(plain)] if plain or not inputs else []
    found += [given for given in inputs if isinstance(given, Source)]
    if len({bool(source.group) for source in found}) > 1:
        raise DataError("some sources have a group and some have none")
    return found


def read_pieces(
    source: Source, config: DataConfig, on_read: Callable[[int], None] | None = None
) -> Iterator[Piece | Rejected]:
    """The documents of a source in order, long ones in pieces.

    With `skip_bad`, plain text in another encoding is one rejection, as a bad JSON row is: what
    was read of it before stays.

    Args:
        source: the file.
        config: text key, encoding, separator, skip_bad.
        on_read: called with the number of bytes taken from the file, as they are on the disk.

    Raises:
        DataError: the file cannot be read, is truncated, or plain text has another encoding.
    """
    if is_json_lines(source.path):
        for row in read_rows(source.path, config.text_key, on_read):
            if isinstance(row, Document):
                yield Piece(row.text, row.line, True, True)
            else:
                yield row
        return
    open_line = None  # of a document that has begun and not ended
    try:
        for piece in _plain(source.path, config, on_read):
            open_line = None if piece.ends else piece.line
            yield piece
    except DataError as fault:
        line = fault.where.removeprefix(f"{source.path}:")
        if not config.skip_bad or not line.isdecimal():
            raise
        if open_line is not None:
            yield Piece("", open_line, False, True)
        yield Rejected(str(source.path), int(line), fault.what)


def _plain(
    path: Path, config: DataConfig, on_read: Callable[[int], None] | None
) -> Iterator[Piece]:
    """As `documents.read_documents` reads plain text, without holding a document whole."""
    mark = config.document_separator
    held: list[str] = []
    size, starts, found = 0, True, False
    start = line = 1
    texts = decode_file(path, config.encoding, on_read)
    for cut in cut_text(texts, mark or END_OF_TEXT, alone_only=not mark):
        held.append(cut.text)
        size += len(cut.text)
        line += cut.lines
        if cut.ends:
            found = True
            text = "".join(held)
            if text.strip() or not starts:
                yield Piece(text, start, starts, True)
            held, size, starts, start = [], 0, True, line
        elif size > PIECE_CHARACTERS:
            text = "".join(held)
            # One character stays: the last line end of the file may not belong to its document.
            at = min(safe_cut(text), len(text) - 1)
            yield Piece(text[:at], start if found else 0, starts, False)
            held, size, starts = [text[at:]], len(text) - at, False
    text = "".join(held)
    text = text.removesuffix("\n") if found else text
    if (text.strip() if found else text) or not starts:
        yield Piece(text, start if found else 0, starts, True)


def safe_cut(text: str) -> int:
    r"""Where a long text is cut, near its end: behind a lone line end where there is one, else
    behind any line end, else at the end of the text.

    >>> safe_cut("one\ntwo\n  three")
    4
    """
    # Backwards in steps, since the last match is wanted and most texts have one nearby.
    step = 1 << 12
    for stop in range(len(text), 0, -step):
        matches = list(_SAFE.finditer(text, max(0, stop - step), stop))
        if matches:
            return matches[-1].end()
    return text.rfind("\n") + 1 or len(text)
