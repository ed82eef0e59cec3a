r"""Readers: files in, documents out, with bounded memory.

- Plain text (`.txt`, `.md`, `.py`, anything that is not JSON lines) is one document, or several
  where a separator parts them: the one that is named, or else each line that holds only
  `<|endoftext|>`.
- JSON lines (`.jsonl`, `.ndjson`) are one document a line, under a text key, always in UTF-8.
- Either may be compressed (`.gz`, `.zst`).

A byte order mark is dropped and `\r\n` becomes `\n`. A lone `\r` stays.
"""

from __future__ import annotations

import codecs
import difflib
import glob
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sparrowlm.errors import DataError
from sparrowlm.text.definition import END_OF_TEXT
from sparrowlm.text.reading import OnRead, cut_text, decode_file, read_blocks, split_lines

JSON_LINES = (".jsonl", ".ndjson")
COMPRESSED = (".gz", ".zst")
_DECODER = json.JSONDecoder()


class Document(NamedTuple):
    """One text and where it came from."""

    text: str
    source: str  # path of the file
    line: int  # 1-based line on which it starts; 0: the whole file is this document


class Rejected(NamedTuple):
    """One row that is not a document, and why."""

    source: str
    line: int
    reason: str


def find_inputs(paths: Sequence[str]) -> list[Path]:
    """The files that some paths mean: files as they are, folders recursively, globs.

    In a folder, names with a leading dot and binary files (a zero byte in the first 4 KiB) are
    passed over; a file that is named is always taken. Sorted within a folder or a glob, in the
    order given otherwise, each file once.

    Raises:
        DataError: a path that is nothing, or that holds no file.
    """
    if not paths:
        raise DataError("no input is named", fix="give files, folders or globs")
    found: dict[Path, Path] = {}
    for path in paths:
        for file in _expand(path):
            found.setdefault(file.resolve(), file)
    return list(found.values())


def is_json_lines(path: Path | str) -> bool:
    """Whether the name says JSON lines, compressed or not.

    >>> is_json_lines("a/b.jsonl.zst"), is_json_lines("notes.txt")
    (True, False)
    """
    return _inner_suffix(Path(path)) in JSON_LINES


def read_documents(
    path: Path | str, *, text_key: str = "text", encoding: str = "utf-8", separator: str = ""
) -> Iterator[Document | Rejected]:
    r"""The documents of one file, in order.

    Args:
        path: a plain or JSON-lines file, compressed or not.
        text_key: of a JSON row.
        encoding: of plain text. JSON lines are UTF-8 by their standard.
        separator: parts the documents of a plain file. Where it stands alone on a line, the line
            goes with it. Empty: lines that hold only `<|endoftext|>` part, and nothing else.

    Yields:
        Of JSON lines, one `Document` or `Rejected` for each line, blank ones rejected, so that
        both together are the number of lines; a line end at the end of the file begins no
        further line. An empty text is a document. Of plain text, non-empty documents; `line` is
        0 where the whole file is one, and above 0 where a separator was found.

    Raises:
        DataError: the file cannot be read, is truncated, or plain text has another encoding.
    """
    path = Path(path)
    if is_json_lines(path):
        return read_rows(path, text_key)
    return _read_plain(path, encoding, separator)


def has_separator(path: Path | str, encoding: str = "utf-8") -> bool:
    """Whether some line of a plain file holds only `<|endoftext|>`; reads up to the first one.

    Raises:
        DataError: as `read_documents`.
    """
    texts = decode_file(Path(path), encoding)
    return any(cut.ends for cut in cut_text(texts, END_OF_TEXT, alone_only=True))


def _expand(path: str) -> list[Path]:
    place = Path(path).expanduser()
    if place.is_file():
        return [place]
    if place.is_dir():
        files = [file for file in _walk(place) if not _is_binary(file)]
        if not files:
            raise DataError("holds no text file", where=path, fix="name another folder")
        return files
    if glob.has_magic(path):
        matches = sorted(Path(name) for name in glob.glob(str(place), recursive=True))
        files = [file for match in matches for file in ([match] if match.is_file() else [])]
        if not files:
            raise DataError("matches no file", where=path, fix="check the pattern")
        return files
    names = [entry.name for entry in place.parent.iterdir()] if place.parent.is_dir() else []
    close = difflib.get_close_matches(place.name, sorted(names), n=1)
    fix = f"did you mean {place.parent / close[0]}?" if close else "check the path"
    raise DataError("no such file or folder", where=path, fix=fix)


def _walk(folder: Path) -> Iterator[Path]:
    """Files below `folder`, sorted by path, hidden ones left out."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(entry)
        elif entry.is_file():
            yield entry


def _is_binary(path: Path) -> bool:
    if path.suffix in COMPRESSED:
        return _inner_suffix(path) not in (*JSON_LINES, ".txt", ".md")
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as fault:
        raise DataError(f"cannot be read: {fault.strerror}", where=str(path)) from fault
    return b"\0" in head and not head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def _inner_suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_rows(path: Path, text_key: str, on_read: OnRead = None) -> Iterator[Document | Rejected]:
    """`read_documents` of JSON lines."""
    source = str(path)
    for number, line in enumerate(split_lines(read_blocks(path, on_read)), 1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        row = _row_text(line, text_key)
        if row[1]:
            yield Rejected(source, number, row[1])
        else:
            yield Document(row[0], source, number)


def parse_row(line: bytes) -> tuple[dict[str, Any], str]:
    """The object in a line of JSON lines, or the reason why there is none."""
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


def _row_text(line: bytes, text_key: str) -> tuple[str, str]:
    """The text of a JSON row, or the reason why it has none."""
    row, reason = parse_row(line)
    if reason:
        return "", reason
    if text_key not in row:
        close = difflib.get_close_matches(text_key, row, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; it has {_some(row)}"
        return "", f"no key {text_key!r}{hint}"
    text = row[text_key]
    if not isinstance(text, str):
        return "", f"{text_key!r} is a {_json_name(text)}, not a string"
    if b"\\u" in line and not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            return "", f"{text_key!r} holds half of a surrogate pair, which is no character"
    return text.replace("\r\n", "\n"), ""


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


def _some(row: dict[str, object]) -> str:
    names = [repr(name) for name in list(row)[:5]]
    return ", ".join(names) + (" …" if len(row) > 5 else "") if names else "none"


def _read_plain(path: Path, encoding: str, separator: str) -> Iterator[Document]:
    """The documents of a plain file, one held at a time."""
    source, found = str(path), False
    parts: list[str] = []
    start = line = 1  # where the document starts; where reading is
    cuts = cut_text(decode_file(path, encoding), separator or END_OF_TEXT, alone_only=not separator)
    for cut in cuts:
        parts.append(cut.text)
        line += cut.lines
        if cut.ends:
            found = True
            text = "".join(parts)
            if text.strip():
                yield Document(text, source, start)
            parts, start = [], line
    text = "".join(parts)
    if not found and text:
        yield Document(text, source, 0)
    elif text.strip():
        # Like every other document here, without the line end before its border.
        yield Document(text.removesuffix("\n"), source, start)
