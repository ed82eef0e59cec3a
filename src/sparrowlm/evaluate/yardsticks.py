"""What general compressors make of the same bytes: a yardstick that needs no explanation."""

from __future__ import annotations

import gzip
import lzma
from concurrent.futures import ThreadPoolExecutor

from sparrowlm.errors import DataError

XZ_DICTIONARY = 64 * 2**20
"""Bytes that `xz -9` can look back on."""


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
    further back could not help. Takes about a second for each megabyte, on two cores, and up to
    1.4 GB of memory.

    Args:
        text: held-out bytes.
        train: the training bytes, or their end; more than XZ_DICTIONARY of them are of no use.

    Raises:
        DataError: no held-out bytes at all.
    """
    room = max(XZ_DICTIONARY - len(text), 0)
    seen = train[max(len(train) - room, 0) :]
    with ThreadPoolExecutor(2) as pool:  # the compressor runs outside of the interpreter's lock
        together, before = pool.map(_xz, (seen + text, seen))
    return _bits_per_byte(together - before, text)


def _xz(content: bytes) -> int:
    return len(lzma.compress(content, preset=9))


def _bits_per_byte(compressed: int, text: bytes) -> float:
    if not text:
        raise DataError("there are no held-out bytes to compress")
    return 8 * compressed / len(text)
