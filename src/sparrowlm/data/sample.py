"""A random part of a JSON-lines file, by size.

Every line gets a key, a hash of the seed and its number; the lines with the smallest keys make
the sample, as many as reach the wanted size. So one pass is enough without knowing how large the
input is, a file gives the same lines compressed or not, and with one seed a smaller sample is part
of a larger one.

Lines that may be in the sample go to a spool on the disk, and memory holds four numbers for each
one that is still in: about 200 bytes a line of the sample, whatever the size of the input.
"""

from __future__ import annotations

import gzip
import hashlib
import heapq
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import zstandard

from sparrowlm import files
from sparrowlm.errors import DataError, RunError
from sparrowlm.text.documents import format_of
from sparrowlm.text.rows import parse_row, read_row_lines


class Sampled(NamedTuple):
    """What was sampled from what."""

    lines: int
    bytes: int  # without compression, line ends included
    total_lines: int
    total_bytes: int
    rejected: int


class _Kept(NamedTuple):
    """A line of the sample. The largest key is the first to go, and a heap's top is its least."""

    minus_key: int
    number: int
    offset: int  # in the spool
    size: int


def sample(
    source: Path,
    out: Path,
    target: int,
    seed: int,
    *,
    skip_bad: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Sampled:
    """Write a random part of a JSON-lines file, its lines in their order.

    Args:
        source: `.jsonl` or `.ndjson`, perhaps `.gz` or `.zst`.
        out: the same, compressed as its name says; must not exist.
        target: bytes of the sample before compression: it has at least as many, by less than one
            line more, or is the whole input where that has less.
        seed: of the choice.
        skip_bad: leave out lines that are no JSON objects instead of stopping there.
        progress: hears how many bytes were taken from the disk.

    Raises:
        DataError: a bad line, or names that are not those of JSON lines.
        RunError: `out` exists.
    """
    _check(source, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with files.disk_faults(out), tempfile.TemporaryFile(dir=out.parent) as spool:
        kept, counts = _choose(_lines(source, skip_bad, progress), target, seed, spool)
        kept.sort(key=lambda line: line.number)
        with files.writing(out) as raw, _packed(raw, out) as file:
            for line in kept:
                spool.seek(line.offset)
                file.write(spool.read(line.size))
    size = sum(line.size for line in kept)
    return Sampled(len(kept), size, *counts)


def _check(source: Path, out: Path) -> None:
    for path in (source, out):
        if format_of(path) != "lines":
            raise DataError(
                "is not named as JSON lines", where=str(path), fix=".jsonl, .jsonl.gz, .jsonl.zst"
            )
    if out.exists():
        raise RunError("exists already", where=str(out), fix="choose another name or remove it")


def _choose(
    lines: Iterator[tuple[int, bytes, str]], target: int, seed: int, spool: BinaryIO
) -> tuple[list[_Kept], tuple[int, int, int]]:
    """The lines of the sample, and (lines, bytes, rejected ones) of all there were."""
    kept: list[_Kept] = []
    size = count = total = rejected = end = 0
    secret = seed.to_bytes(16, "little", signed=True)
    for number, line, reason in lines:
        if reason:
            rejected += 1
            continue
        count, total = count + 1, total + len(line)
        minus_key = -_key(secret, number)
        if size >= target and kept and minus_key < kept[0].minus_key:
            continue
        spool.write(line)
        heapq.heappush(kept, _Kept(minus_key, number, end, len(line)))
        end, size = end + len(line), size + len(line)
        while size - kept[0].size >= target:
            size -= heapq.heappop(kept).size
    return kept, (count, total, rejected)


def _key(secret: bytes, number: int) -> int:
    digest = hashlib.blake2b(number.to_bytes(8, "little"), digest_size=8, key=secret).digest()
    return int.from_bytes(digest, "little")


def _lines(
    source: Path, skip_bad: bool, progress: Callable[[int], None] | None
) -> Iterator[tuple[int, bytes, str]]:
    """(1-based number, line with its end, reason why it is no row)."""
    for number, line, fault in read_row_lines(source, progress):
        reason = fault or parse_row(line)[1]
        if reason and not skip_bad:
            raise DataError(
                reason,
                where=f"{source}:{number}",
                fix="mend it, or leave such rows out: --skip-bad",
            )
        yield number, line + b"\n", reason


@contextmanager
def _packed(raw: BinaryIO, name: Path) -> Iterator[BinaryIO]:
    """A file to write to, compressed as the name says; the same content gives the same bytes."""
    match name.suffix.lower():
        case ".gz":
            with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
                yield file  # pyright: ignore[reportReturnType]
        case ".zst":
            with zstandard.ZstdCompressor().stream_writer(raw, closefd=False) as file:
                yield file  # pyright: ignore[reportReturnType]
        case _:
            yield raw
