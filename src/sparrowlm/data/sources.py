"""Files in, pieces of documents out.

A document that is read whole would take the memory of the largest file, so long plain text comes
in pieces.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparrowlm import files
from sparrowlm.config.schema import DataConfig
from sparrowlm.data.hub import fetch, is_address
from sparrowlm.data.shards import FACTS
from sparrowlm.errors import DataError
from sparrowlm.text.documents import (
    Document,
    Piece,
    Rejected,
    find_inputs,
    format_of,
    read_plain,
    read_rows,
)


@dataclass(frozen=True)
class Source:
    """One file of text."""

    path: Path
    group: str = ""
    """Documents of one group are held out together; "": each by its own text."""


def as_sources(
    inputs: Sequence[str | Path | Source],
    mirror: str = "",
    passed_over: Counter[str] | None = None,
) -> list[Source]:
    """Files, folders, globs and addresses of hubs as sources; sources as they are.

    Args:
        inputs: what to read.
        mirror: of the hub, where an input is an address; "": the hub itself.
        passed_over: counts what was left out of folders and repositories, by kind.

    Raises:
        DataError: a path that is nothing, or a prepared dataset, whose text nobody has; some
            sources with a group and some without; what a hub does not have or give.
    """
    paths: list[str] = []
    for given in map(str, (given for given in inputs if not isinstance(given, Source))):
        _check_text(given)
        paths += map(str, fetch(given, mirror, passed_over)) if is_address(given) else [given]
    found = (
        [Source(path) for path in find_inputs(paths, passed_over)] if paths or not inputs else []
    )
    found += [given for given in inputs if isinstance(given, Source)]
    if len({bool(source.group) for source in found}) > 1:
        raise DataError("some sources have a group and some have none")
    return found


def _check_text(path: str) -> None:
    """
    Raises:
        DataError: its facts would be read as text.
    """
    folder = Path(path).expanduser()
    if all((folder / name).is_file() for name in (FACTS, files.MANIFEST)):
        raise DataError(
            "is a prepared dataset, and text is wanted",
            where=path,
            fix="name the text; prepared datasets are trained on one by one, or by data.mix",
        )


def read_pieces(
    source: Source, config: DataConfig, on_read: Callable[[int], None] | None = None
) -> Iterator[Piece | Rejected]:
    """The documents of a source in order, long ones in pieces.

    With `skip_bad`, plain text in another encoding is one rejection, as a bad row is: what was
    read of it before stays.

    Args:
        source: the file.
        config: text key, encoding, separator, skip_bad.
        on_read: called with the number of bytes taken from the file, as they are on the disk.

    Raises:
        DataError: the file cannot be read, is truncated, or plain text has another encoding.
    """
    if format_of(source.path) != "plain":
        for row in read_rows(source.path, config.text_key, config.encoding, on_read):
            if isinstance(row, Document):
                yield Piece(row.text, row.line, True, True)
            else:
                yield row
        return
    open_line = None  # of a document that has begun and not ended
    try:
        for piece in read_plain(source.path, config.encoding, config.document_separator, on_read):
            open_line = None if piece.ends else piece.line
            yield piece
    except DataError as fault:
        line = fault.where.removeprefix(f"{source.path}:")
        if not config.skip_bad or not line.isdecimal():
            raise
        if open_line is not None:
            yield Piece("", open_line, False, True)
        yield Rejected(str(source.path), int(line), fault.what)
