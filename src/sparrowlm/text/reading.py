r"""Bytes from a file, text from bytes, pieces of documents from text; none of it held whole."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import zstandard

from sparrowlm.errors import DataError

BLOCK = 1 << 20  # bytes read at once
# A zstd block of four bytes may stand for 128 KiB of text, so little is unpacked at once.
ZSTD_FEED = 1 << 8

OnRead = Callable[[int], None] | None  # hears how many bytes were taken from the disk


def read_blocks(path: Path, on_read: OnRead = None) -> Iterator[bytes]:
    """A file's bytes, decompressed, in pieces; `on_read` hears of those taken from the disk.

    Raises:
        DataError: it cannot be read, or what is compressed is damaged or cut off.
    """
    try:
        match path.suffix.lower():
            case ".gz":
                with path.open("rb") as packed, gzip.GzipFile(fileobj=packed) as file:
                    at = 0
                    while block := file.read(BLOCK):
                        _tell(on_read, packed.tell() - at)
                        at = packed.tell()
                        yield block
            case ".zst":
                yield from _zstd_blocks(path, on_read)
            case _:
                with path.open("rb") as file:
                    while block := file.read(BLOCK):
                        _tell(on_read, len(block))
                        yield block
    except EOFError as fault:
        raise _truncated(path) from fault
    except (zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as fault:
        raise DataError(
            f"is damaged: {fault}", where=str(path), fix="fetch or compress the file again"
        ) from fault
    except OSError as fault:
        raise DataError(f"cannot be read: {fault.strerror or fault}", where=str(path)) from fault


def _zstd_blocks(path: Path, on_read: OnRead) -> Iterator[bytes]:
    """All frames of a file. The library's own stream reader ends a truncated file in silence."""
    frame, inside = _zstd().decompressobj(), False
    with path.open("rb") as file:
        while taken := file.read(BLOCK):
            _tell(on_read, len(taken))
            for start in range(0, len(taken), ZSTD_FEED):
                fed = taken[start : start + ZSTD_FEED]
                while fed:
                    if block := frame.decompress(fed):
                        yield block
                    fed, inside = frame.unused_data, not frame.eof
                    if frame.eof:
                        frame = _zstd().decompressobj()
    if inside:
        raise _truncated(path)


def _zstd() -> zstandard.ZstdDecompressor:
    """Frames of `zstd --long=31` too, which ask for as much memory as they say."""
    return zstandard.ZstdDecompressor(max_window_size=1 << 31)


def _tell(on_read: OnRead, taken: int) -> None:
    if on_read is not None:
        on_read(taken)


def _truncated(path: Path) -> DataError:
    return DataError(
        "ends in the middle of its compressed data",
        where=str(path),
        why="it was not copied or written to its end",
        fix="fetch or compress the file again",
    )


def split_lines(blocks: Iterable[bytes], most: int) -> Iterator[bytes]:
    r"""Lines without their `\n`. A line end at the very end begins no further line. Of a line of
    more than `most` bytes only a beginning, which has more as well: what is no text may have no
    line end at all."""
    parts: list[bytes] = []  # of a line that spans blocks: joined once, so a long one stays linear
    size = 0  # of them
    for block in blocks:
        head, *more = block.split(b"\n")
        if size <= most:
            parts.append(head)
            size += len(head)
        if more:
            yield b"".join(parts)
            yield from more[:-1]
            parts, size = [more[-1]], len(more[-1])
    if last := b"".join(parts):
        yield last


def decode_file(
    path: Path, encoding: str, on_read: OnRead = None, errors: str = "strict"
) -> Iterator[str]:
    r"""A plain file's text in pieces, without its byte order mark, `\r\n` as `\n`.

    Args:
        path: perhaps compressed.
        encoding: of the text.
        on_read: told of bytes taken from the disk.
        errors: "strict", or "surrogateescape" to let bytes that are no text pass as halves of
            surrogate pairs, for a reader that rejects the row they are in.

    Raises:
        DataError: it cannot be read or is truncated; it has another encoding, or there is none
            of this name.
    """
    try:
        "".encode(encoding)  # which refuses hex, rot13 and what else is a codec of other things
        decoder = codecs.getincrementaldecoder(encoding)(errors)
    except (LookupError, UnicodeError) as fault:
        raise DataError(
            f'"{encoding}" is not an encoding', where="data.encoding", fix="such as utf-8, gb18030"
        ) from fault
    line, held, first = 1, "", True
    blocks = read_blocks(path, on_read)
    while True:
        block = next(blocks, b"")
        pending = decoder.getstate()[0]
        try:
            text = held + decoder.decode(block, final=not block)
        except UnicodeDecodeError as fault:
            raise _wrong_encoding(path, encoding, line, pending + block, fault) from fault
        except UnicodeError as fault:
            raise _no_order(path, encoding, line, block, fault) from fault
        if first and text:
            text, first = text.removeprefix("\ufeff"), False
        held = "\r" if block and text.endswith("\r") else ""
        text = text.removesuffix(held).replace("\r\n", "\n")
        line += text.count("\n")
        if text:
            yield text
        if not block:
            return


def _wrong_encoding(
    path: Path, encoding: str, line: int, block: bytes, fault: UnicodeDecodeError
) -> DataError:
    at = fault.object[: fault.start].count(b"\n")
    bad = fault.object[fault.start : fault.start + 1].hex()
    return DataError(
        f"is not {encoding}: byte 0x{bad}",
        where=f"{path}:{line + at}",
        why=fault.reason,
        fix=f'name its encoding: data.encoding = "{_guess(block, encoding)}"',
    )


def _no_order(path: Path, encoding: str, line: int, block: bytes, fault: UnicodeError) -> DataError:
    """A fault without a place: of UTF-16 and UTF-32 that their first character is no mark."""
    fix = f'name its byte order: data.encoding = "{encoding}-le" or "{encoding}-be"'
    if codecs.lookup(encoding).name not in ("utf-16", "utf-32"):
        fix = f'name its encoding: data.encoding = "{_guess(block, encoding)}"'
    return DataError(f"is not {encoding}", where=f"{path}:{line}", why=str(fault), fix=fix)


def _guess(block: bytes, tried: str) -> str:
    """The first common encoding that reads `block`; latin-1 reads anything."""
    if block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    for name in ("utf-8", "gb18030", "latin-1"):
        if codecs.lookup(name).name == codecs.lookup(tried).name:
            continue
        try:
            # final=False: a character may be cut by the end of the block
            codecs.getincrementaldecoder(name)().decode(block)
        except UnicodeDecodeError:
            continue
        return name
    return "latin-1"


class Cut(NamedTuple):
    """A piece of a document, and what it took to come by it."""

    text: str
    lines: int  # line ends passed, those of the separator included
    ends: bool  # a separator follows


def cut_text(texts: Iterable[str], mark: str, alone_only: bool) -> Iterator[Cut]:
    """Cut a text, given in pieces, at every `mark`, or only at those alone on a line.

    A mark alone on its line goes with the line end before it and the one after it.
    """
    keep = len(mark) + 1  # what a later piece may still turn into a mark, and what is before it
    buffer, line_start = "", True
    for text in chain(texts, [""]):
        final = not text
        buffer += text
        position = scan = 0
        while (at := buffer.find(mark, scan)) >= 0:
            after = at + len(mark)
            if after == len(buffer) and not final:
                break
            before = line_start if at == position else buffer[at - 1] == "\n"
            alone = before and buffer[after : after + 1] in ("", "\n") and mark == mark.strip("\n")
            scan = after
            if alone_only and not alone:
                continue
            piece = buffer[position:at]
            scan = after + alone
            line_start = alone or mark.endswith("\n")
            lines = buffer.count("\n", position, scan)
            yield Cut(piece.removesuffix("\n") if alone else piece, lines, ends=True)
            position = scan
        rest = max(position, len(buffer) - (0 if final else keep))
        if rest > position:
            piece = buffer[position:rest]
            line_start = piece.endswith("\n")
            yield Cut(piece, piece.count("\n"), ends=False)
        buffer = buffer[rest:]
