"""What general compressors make of the same bytes: a yardstick that needs no explanation."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from sparrowlm.errors import DataError

XZ_DICTIONARY = 64 * 2**20
"""Bytes that `xz -9` can look back on."""


class Yardsticks(NamedTuple):
    """Bits per byte of the held-out text, by what compressed it; None where there is none."""

    gzip: float | None
    xz: float | None
    xz_primed: float | None


def measure_yardsticks(
    text: bytes | None, train_bytes: Callable[[int], bytes | None]
) -> Yardsticks:
    """All of them at once, in threads.

    Args:
        text: held-out bytes, or None without a tokenizer.
        train_bytes: gives the training bytes, `limit` tokens of them, or None.
    """
    if not text:
        return Yardsticks(None, None, None)
    train = train_bytes(XZ_DICTIONARY) or b""
    seen = _within_reach(text, train)
    # The compressors run outside of the interpreter's lock. Two at a time: each may take 700 MB.
    with ThreadPoolExecutor(2) as pool:
        together, before, alone = pool.map(_xz, (seen + text, seen, text))
    return Yardsticks(
        gzip=gzip_bits_per_byte(text),
        xz=_bits_per_byte(alone, text),
        xz_primed=_bits_per_byte(together - before, text) if train else None,
    )


def gzip_bits_per_byte(text: bytes) -> float:
    """What `gzip -9 < text` takes: DEFLATE at level 9 (zlib's; GNU gzip's own differs by less
    than a thousandth), 18 bytes of header and trailer included.

    Raises:
        DataError: no bytes at all.

    >>> round(gzip_bits_per_byte(b"a" * 1000), 3)
    0.232
    """
    return _bits_per_byte(len(gzip.compress(text, compresslevel=9, mtime=0)), text)


def xz_bits_per_byte(text: bytes) -> float:
    """What `xz -9 < text` takes: LZMA2, preset 9, CRC64, container included.

    Raises:
        DataError: no bytes at all.
    """
    return _bits_per_byte(_xz(text), text)


def primed_xz_bits_per_byte(text: bytes, train: bytes) -> float:
    """What `text` adds to an archive that already holds the training bytes: the fair
    comparison with a model that has read them, xz(train + text) - xz(train).

    Of `train` only the end is used that, with `text`, still fits into the dictionary: what lies
    further back could not help. Takes about a second for each megabyte, and up to 700 MB of
    memory; other threads run meanwhile.

    Args:
        text: held-out bytes.
        train: the training bytes, or their end; more than XZ_DICTIONARY of them are of no use.

    Raises:
        DataError: no held-out bytes at all.
    """
    seen = _within_reach(text, train)
    return _bits_per_byte(_xz(seen + text) - _xz(seen), text)


def _within_reach(text: bytes, train: bytes) -> bytes:
    """The end of `train` that still lies in the dictionary when the last byte of `text` comes."""
    room = max(XZ_DICTIONARY - len(text), 0)
    return train[max(len(train) - room, 0) :]


def _xz(content: bytes) -> int:
    return len(lzma.compress(content, preset=9))


def _bits_per_byte(compressed: int, text: bytes) -> float:
    if not text:
        raise DataError("there are no held-out bytes to compress")
    return 8 * compressed / len(text)
