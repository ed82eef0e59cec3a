"""CSV: one document a row, from the column that holds the text."""

from __future__ import annotations

import ast
import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from sparrowlm.text.reading import OnRead, decode_file
from sparrowlm.text.rows import LARGEST_ROW, Rejected, Row, as_row, clean, is_text, no_key

QUESTION, ANSWER, HISTORY = "q", "a", "history"
"""Columns of minimind's first fine-tuning files."""


def read_csv(
    path: Path, text_key: str, encoding: str = "utf-8", on_read: OnRead = None
) -> Iterator[Row]:
    """Of a CSV file, one row for each record but the first, which names the columns. Cells may
    hold line ends between quotes; a row's line is the one it begins on.

    Where `text` is asked for and there are columns `q` and `a` instead (and perhaps `history`, a
    Python list of earlier pairs), a row's text is its turns in order, parted by blank lines. They
    are not put into the chat template: text never becomes a special token, so the template's
    markers would be learned letter by letter.

    Raises:
        DataError: the file cannot be read, is truncated, or has no such encoding.
    """
    texts = decode_file(path, encoding, on_read, errors="surrogateescape")
    records = _records(texts)
    _, header, fault = next(records, (0, [], ""))
    if fault:
        yield Rejected(str(path), 1, fault)
        header = []
    for line, cells, fault in records:
        if not fault and not cells:
            fault = "blank line"
        if not fault and len(cells) != len(header):
            fault = f"{len(cells)} cells under {len(header)} columns"
        if fault:
            yield Rejected(str(path), line, fault)
            continue
        row = dict(zip(reversed(header), reversed(cells), strict=True))  # the first of its name
        text, fault = _row_text(row, header, text_key)
        if not fault and not is_text(text):
            fault = f"not {encoding} (data.encoding names another)"
        yield as_row(str(path), line, clean(text), fault)


def _row_text(row: dict[str, str], header: list[str], text_key: str) -> tuple[str, str]:
    """The text of a record, or the reason why it has none."""
    if text_key in row:
        return row[text_key], ""
    if text_key == "text" and QUESTION in row and ANSWER in row:
        history = read_history(row.get(HISTORY, ""))
        if history is None:
            return "", f"{HISTORY!r} is not a list of pairs of strings"
        return "\n\n".join([*history, row[QUESTION], row[ANSWER]]), ""
    return "", no_key("column", text_key, header)


def read_history(content: str) -> list[str] | None:
    """The turns of a list of (question, answer) pairs as Python writes it, in order; None where
    it is anything else. Only literals are read, nothing runs.

    >>> read_history("[['hello', 'good day']]")
    ['hello', 'good day']
    """
    if not content.strip():
        return []
    try:
        pairs = ast.literal_eval(content.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    if not isinstance(pairs, list | tuple):
        return None
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        return None
    turns = [turn for pair in pairs for turn in pair]
    return turns if all(isinstance(turn, str) for turn in turns) else None


def _records(texts: Iterable[str]) -> Iterator[tuple[int, list[str], str]]:
    """(line, cells, fault) of each record. After a fault, reading goes on with the next line."""
    lines = Lines(texts)
    reader = csv.reader(lines, strict=True)
    line, fault = 1, ""
    while True:
        cells: list[str] | None = []
        try:
            cells, fault = _next_record(reader), ""
        except csv.Error as error:
            fault = f"not CSV: {error}"
        if cells is None:
            return
        if lines.cut:
            cells, fault = [], f"a line of more than {LARGEST_ROW:,} characters"
            lines.cut = False
        yield line, cells, fault
        line = reader.line_num + 1


def _next_record(reader: Iterator[list[str]]) -> list[str] | None:
    """The next record, None at the end. The module's limit on the size of a cell is the whole
    process's, and lower than many a document: it is raised for this one call."""
    before = csv.field_size_limit(LARGEST_ROW)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(before)


class Lines:
    """Lines with their line ends, of a text in pieces. Of one beyond `LARGEST_ROW` a beginning, and
    `cut` says so until somebody takes note: what is no text may have no line end at all."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts, self.cut = texts, False

    def __iter__(self) -> Iterator[str]:
        parts: list[str] = []  # of a line that spans pieces: joined once, so it stays linear
        size = 0
        for text in self._texts:
            *whole, rest = text.split("\n")
            for line in whole:
                self.cut |= size + len(line) > LARGEST_ROW
                yield "".join([*parts, line[: LARGEST_ROW + 1], "\n"])
                parts, size = [], 0
            if size <= LARGEST_ROW:
                parts.append(rest)
            size += len(rest)
        self.cut |= size > LARGEST_ROW
        if last := "".join(parts):
            yield last
