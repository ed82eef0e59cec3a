"""What a vocabulary does to a text, in numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sparrowlm.text.tokenizer import Tokenizer

GROUP_CHARACTERS = 1 << 20  # encoded at once


@dataclass(frozen=True)
class Measured:
    """One text or file."""

    bytes: int
    tokens: int
    exact: bool  # decoding gives the same bytes back
    whole: bool  # False: only the beginning was looked at

    @property
    def bytes_per_token(self) -> float:
        """0 where there is no token."""
        return self.bytes / self.tokens if self.tokens else 0.0


def measure(tokenizer: Tokenizer, texts: Iterable[str], limit: int = 0) -> Measured:
    """Encode texts, decode them again, and count.

    Args:
        tokenizer: any.
        texts: each encoded on its own; about 1 MB is held at a time.
        limit: bytes after which to stop; 0 is never.

    Raises:
        TokenizerError: a character that the vocabulary lacks.
    """
    size = tokens = 0
    exact = whole = True
    for group in _groups(texts):
        if limit and size >= limit:
            whole = False
            break
        for text, ids in zip(group, tokenizer.encode_batch(group), strict=True):
            content = text.encode("utf-8")
            size += len(content)
            tokens += len(ids)
            exact = exact and tokenizer.decode_bytes(ids.tolist()) == content
    return Measured(size, tokens, exact, whole)


def longest(tokenizer: Tokenizer, count: int) -> list[int]:
    """Ids of the longest tokens by bytes, longest first, lower ids first among equals."""
    lengths = tokenizer.byte_lengths().tolist()
    return sorted(range(len(lengths)), key=lambda id: (-lengths[id], id))[:count]


def missing_bytes(tokenizer: Tokenizer) -> list[int]:
    """Byte values that no token of one byte stands for; [] means that any bytes can be written."""
    single = {
        tokenizer.token_bytes(id)
        for id, length in enumerate(tokenizer.byte_lengths().tolist())
        if length == 1
    }
    return [byte for byte in range(256) if bytes([byte]) not in single]


def all_bytes_text() -> str:
    """A text whose UTF-8 form holds every byte that UTF-8 can hold, in and out of context:
    0xC0, 0xC1 and 0xF5 to 0xFF never occur in it."""
    latin = "".join(map(chr, range(0x800)))
    planes = "".join(chr(point) for point in range(0x800, 0x110000, 0x3F1) if point >> 11 != 0x1B)
    return latin + planes + chr(0x10FFFF)


def _groups(texts: Iterable[str]) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for text in texts:
        group.append(text)
        size += len(text)
        if size >= GROUP_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group
