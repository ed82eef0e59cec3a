r"""Readers: files in, documents out, with bounded memory.

- Plain text (`.txt`, `.md`, `.py`, anything that is not below) is one document, or several where a
  separator parts them: the one that is named, or else each line that holds only `<|endoftext|>`.
- Rows are one document each, under a text key or in a column of that name: JSON lines (`.jsonl`,
  `.ndjson`), JSON arrays (`.json`), `.csv` and `.parquet`. JSON is always UTF-8.
- All of it but `.parquet` may be compressed (`.gz`, `.zst`).
- Token files (`.h5`, `.hdf5`) hold no text; `data.tokens` reads them.

A byte order mark is dropped and `\r\n` becomes `\n`. A lone `\r` stays.
"""

from __future__ import annotations

import codecs
import difflib
import glob
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sparrowlm.errors import DataError
from sparrowlm.text.arrays import read_json
from sparrowlm.text.definition import END_OF_TEXT
from sparrowlm.text.parquet import read_parquet
from sparrowlm.text.reading import OnRead, cut_text, decode_file
from sparrowlm.text.rows import Document, Rejected, read_lines
from sparrowlm.text.tables import read_csv

COMPRESSED = (".gz", ".zst")
FORMATS = {
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "array",
    ".csv": "csv",
    ".parquet": "parquet",
    ".h5": "tokens",
    ".hdf5": "tokens",
}
"""Suffix to format; any other suffix is plain text."""
CODE = (
    ".c", ".cc", ".cpp", ".cs", ".cu", ".go", ".h", ".hpp", ".java", ".js", ".jsx", ".kt", ".lua",
    ".php", ".py", ".rb", ".rs", ".scala", ".sh", ".swift", ".ts", ".tsx",
)  # fmt: skip
BESIDE_CODE = ("array", "csv")
"""Formats that in a folder of source code are settings and test data, not rows of text."""
CACHES = ("__pycache__", "node_modules", "site-packages")
CACHE_MARKS = ("CACHEDIR.TAG", "pyvenv.cfg")
"""Files that mark their folder as a cache (bford.info/cachedir) or a virtual environment."""

ORIGIN = ".origin.json"
"""What a download writes of itself beside its files; no file of the corpus, so none is missed."""

PIECE_CHARACTERS = 1 << 21
_SAFE = re.compile(r"(?<=\S\n)(?=\S)")


class Piece(NamedTuple):
    """A document, or a part of a long one."""

    text: str
    line: int  # 1-based line on which the document starts; 0: the whole file is this document
    starts: bool
    ends: bool


def format_of(path: Path | str) -> str:
    """How a file is read, by its name: plain, lines, array, csv, parquet or tokens.

    >>> format_of("a/b.jsonl.zst"), format_of("notes.txt")
    ('lines', 'plain')
    """
    return FORMATS.get(inner_suffix(path), "plain")


def find_inputs(paths: Sequence[str], passed_over: Counter[str] | None = None) -> list[Path]:
    """The files that some paths mean: files as they are, folders recursively, globs.

    In a folder, what is hidden (a leading dot), caches, linked folders and binary files (a zero
    byte in the first 4 KiB) are passed over; so are `.json` and `.csv` where files of source code
    outnumber them. A file that is named is always taken. Sorted within a folder or a glob, in the
    order given otherwise, each file once.

    Args:
        paths: files, folders or globs.
        passed_over: counts what was left out of folders, by kind.

    Raises:
        DataError: a path that is nothing, that holds no file, or that may not be looked into.
    """
    if not paths:
        raise DataError("no input is named", fix="give files, folders or globs")
    counts: Counter[str] = Counter() if passed_over is None else passed_over
    found: dict[Path, Path] = {}
    for path in paths:
        try:
            for file in _expand(path, counts):
                found.setdefault(file.resolve(), file)
        except OSError as fault:
            raise DataError(
                f"cannot be looked into: {fault.strerror or fault}",
                where=str(fault.filename or path),
                fix="change who may read it, or name the files beside it",
            ) from fault
    return list(found.values())


def read_documents(
    path: Path | str, *, text_key: str = "text", encoding: str = "utf-8", separator: str = ""
) -> Iterator[Document | Rejected]:
    r"""The documents of one file, in order.

    Args:
        path: a plain file or one of rows, compressed or not.
        text_key: of a JSON row; the column of a table.
        encoding: of plain text and of CSV. JSON is UTF-8 by its standard.
        separator: parts the documents of a plain file. Where it stands alone on a line, the line
            goes with it. Empty: lines that hold only `<|endoftext|>` part, and nothing else.

    Yields:
        Of rows, one `Document` or `Rejected` for each, so that both together are the number of
        rows. An empty text is a document. Of plain text, non-empty documents; `line` is 0 where
        the whole file is one, and above 0 where a separator was found.

    Raises:
        DataError: the file cannot be read, is truncated, or plain text has another encoding.
    """
    path = Path(path)
    if format_of(path) != "plain":
        yield from read_rows(path, text_key, encoding)
        return
    parts: list[str] = []
    for piece in read_plain(path, encoding, separator):
        parts.append(piece.text)
        if piece.ends:
            text, parts = "".join(parts), []
            if text.strip() or not piece.line:
                yield Document(text, str(path), piece.line)


def read_rows(
    path: Path, text_key: str, encoding: str = "utf-8", on_read: OnRead = None
) -> Iterator[Document | Rejected]:
    """`read_documents` of a file of rows.

    Raises:
        DataError: the file cannot be read, is truncated, or holds no rows of text.
    """
    match format_of(path):
        case "lines":
            return read_lines(path, text_key, on_read)
        case "array":
            return read_json(path, text_key, on_read)
        case "csv":
            return read_csv(path, text_key, encoding, on_read)
        case "parquet":
            return read_parquet(path, text_key, on_read)
        case other:
            raise DataError(
                f"holds {other}, not text", where=str(path), fix="name a file of text or of rows"
            )


def has_separator(path: Path | str, encoding: str = "utf-8") -> bool:
    """Whether some line of a plain file holds only `<|endoftext|>`; reads up to the first one.

    Raises:
        DataError: as `read_documents`.
    """
    texts = decode_file(Path(path), encoding)
    return any(cut.ends for cut in cut_text(texts, END_OF_TEXT, alone_only=True))


def _expand(path: str, passed_over: Counter[str]) -> list[Path]:
    place = Path(path).expanduser()
    if place.is_file():
        return [place]
    if place.is_dir():
        files = _texts_below(place, passed_over)
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


def _texts_below(folder: Path, passed_over: Counter[str]) -> list[Path]:
    """The files of a folder that hold text or rows, sorted by path."""
    found = list(_walk(folder, passed_over))
    code = sum(file.suffix.lower() in CODE for file in found)
    beside = sum(format_of(file) in BESIDE_CODE for file in found)
    kept = []
    for file in found:
        if code > beside and format_of(file) in BESIDE_CODE:
            passed_over[f"{file.suffix} beside source code"] += 1
        elif _is_binary(file):
            passed_over["binary"] += 1
        else:
            kept.append(file)
    return kept


def _walk(folder: Path, passed_over: Counter[str]) -> Iterator[Path]:
    """Files below `folder`, sorted by path; hidden ones, caches and linked folders left out."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.name == ORIGIN:
            continue
        if entry.name.startswith("."):
            passed_over["hidden"] += 1
        elif entry.is_dir():
            if entry.is_symlink():  # may lead back up
                passed_over["linked folders"] += 1
            elif _is_cache(entry):
                passed_over["caches"] += 1
            else:
                yield from _walk(entry, passed_over)
        elif entry.is_file():
            yield entry


def _is_cache(folder: Path) -> bool:
    return folder.name in CACHES or any((folder / mark).is_file() for mark in CACHE_MARKS)


def _is_binary(path: Path) -> bool:
    if path.suffix.lower() in COMPRESSED:
        return inner_suffix(path) not in (*FORMATS, ".txt", ".md")
    if format_of(path) in ("parquet", "tokens"):
        return False  # binary, and read
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as fault:
        raise DataError(f"cannot be read: {fault.strerror}", where=str(path)) from fault
    return b"\0" in head and not head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def inner_suffix(path: Path | str) -> str:
    """The suffix of a file's name, small, without that of its compression.

    >>> inner_suffix("a/b.TXT.gz")
    '.txt'
    """
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_plain(
    path: Path, encoding: str = "utf-8", separator: str = "", on_read: OnRead = None
) -> Iterator[Piece]:
    """The documents of a plain file, long ones in pieces of about `PIECE_CHARACTERS`, cut where
    tokenizers cut as well: behind a line end between two characters that are not white space.

    Raises:
        DataError: the file cannot be read, is truncated, or has another encoding.
    """
    held: list[str] = []
    size, starts, found = 0, True, False
    start = line = 1
    texts = decode_file(path, encoding, on_read)
    for cut in cut_text(texts, separator or END_OF_TEXT, alone_only=not separator):
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
