"""Rows: what a row of any file is, and the reader of JSON lines.

Every reader of rows gives one `Document` or one `Rejected` for each row, so that both together
are the number of rows.
"""

from __future__ import annotations

import codecs
import difflib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sparrowlm.text.reading import OnRead, read_blocks, split_lines

_DECODER = json.JSONDecoder()
LARGEST_ROW = 1 << 26  # characters, of a line bytes; beyond, a quote or a bracket was left open


class Document(NamedTuple):
    """One text and where it came from."""

    text: str
    source: str  # path of the file
    line: int  # 1-based line or row on which it starts; 0: the whole file is this document


class Rejected(NamedTuple):
    """One row that is not a document, and why."""

    source: str
    line: int  # as a document's
    reason: str


Row = Document | Rejected


def read_lines(path: Path, text_key: str, on_read: OnRead = None) -> Iterator[Row]:
    """Of JSON lines, one row for each line, blank ones rejected; a line end at the end of the
    file begins no further line.

    Raises:
        DataError: the file cannot be read or is truncated.
    """
    source = str(path)
    for number, line, fault in read_row_lines(path, on_read):
        yield as_row(source, number, *(("", fault) if fault else row_text(line, text_key)))


def read_row_lines(path: Path, on_read: OnRead = None) -> Iterator[tuple[int, bytes, str]]:
    """(number, content, fault) of every line, as yet unparsed.

    Raises:
        DataError: the file cannot be read or is truncated.
    """
    for number, line in enumerate(split_lines(read_blocks(path, on_read), LARGEST_ROW), 1):
        if len(line) > LARGEST_ROW:
            yield number, b"", f"a line of more than {LARGEST_ROW:,} bytes"
        else:
            yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, ""


def as_row(source: str, line: int, text: str, reason: str) -> Row:
    """A document, or a rejection where there is a reason for one."""
    return Rejected(source, line, reason) if reason else Document(text, source, line)


def parse_row(line: bytes) -> tuple[dict[str, Any], str]:
    """The object in a row of JSON, or the reason why there is none."""
    if not line.strip():
        return {}, "blank line"
    try:
        row = _parse(line.decode("utf-8"))
    except UnicodeDecodeError as fault:
        return {}, f"not UTF-8 at byte {fault.start + 1} of the line"
    except RecursionError:
        return {}, "not JSON: nested too deeply"
    except ValueError as fault:
        return {}, f"not JSON: {fault}"
    if not isinstance(row, dict):
        return {}, f"a JSON {_json_name(row)}, not an object"
    return row, ""


def row_text(line: bytes, text_key: str) -> tuple[str, str]:
    """The text of a row of JSON, or the reason why it has none."""
    row, reason = parse_row(line)
    if reason:
        return "", reason
    if text_key not in row:
        return "", no_key("key", text_key, row)
    text = row[text_key]
    if not isinstance(text, str):
        return "", f"{text_key!r} is a {_json_name(text)}, not a string"
    if b"\\u" in line and not is_text(text):
        return "", f"{text_key!r} holds half of a surrogate pair, which is no character"
    return clean(text), ""


def clean(text: str) -> str:
    r"""`\r\n` as `\n`."""
    return text.replace("\r\n", "\n")


def is_text(text: str) -> bool:
    """Whether every character is one: half of a surrogate pair is not."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def no_key(what: str, key: str, present: Iterable[str]) -> str:
    """The reason that a key or column is missing: what there is instead, and what to set."""
    names = list(present)
    close = difflib.get_close_matches(key, names, n=1)
    shown = ", ".join(map(repr, names[:5])) + (" …" if len(names) > 5 else "")
    hint = f"did you mean {close[0]!r}?" if close else f"it has {shown or 'none'}"
    return f"no {what} {key!r}; {hint} (--text-key, data.text_key)"


def _parse(text: str) -> Any:
    """`json.loads`, half of whose time on a short row goes by around the decoder."""
    try:
        value, end = _DECODER.raw_decode(text)
    except ValueError:  # a fault, or white space where the value should begin
        return json.loads(text)
    return value if end == len(text) else json.loads(text)


def _json_name(value: object) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
