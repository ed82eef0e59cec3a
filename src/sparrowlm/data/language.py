"""Which language a text is in, as far as its letters and commonest words tell.

Scripts decide first: Han without kana is zh, kana is ja, Hangul ko, Cyrillic ru, and so on; one
name stands for all languages of a script, so Ukrainian is ru here, Persian ar, and traditional
and simplified Chinese are both zh. Latin letters are told apart by their commonest words: en, de,
fr, es, it, pt, and "latin" for the rest and for texts too short to say. Text with hardly any
letters is "none". No model, and no probability: it sorts out what is plainly something else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

import numpy as np

SCRIPTS: dict[str, tuple[tuple[int, int], ...]] = {
    "latin": ((0x41, 0x5B), (0x61, 0x7B), (0xC0, 0x250), (0x1E00, 0x1F00)),
    "zh": ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00), (0x20000, 0x33480)),
    "ja": ((0x3041, 0x3100), (0x31F0, 0x3200), (0xFF66, 0xFF9E)),
    "ko": ((0x1100, 0x1200), (0x3131, 0x318F), (0xAC00, 0xD7A4)),
    "ru": ((0x400, 0x530),),
    "ar": ((0x620, 0x660), (0x66E, 0x6D4), (0x750, 0x780), (0xFB50, 0xFE00), (0xFE70, 0xFEFF)),
    "el": ((0x370, 0x400), (0x1F00, 0x2000)),
    "he": ((0x5D0, 0x5EB),),
    "hi": ((0x900, 0x980),),
    "th": ((0xE01, 0xE5C),),
}
"""Code points, the last excluded."""
NAMES = tuple(SCRIPTS)
WORDS = {
    "en": "the of and to in is that it was for on with as his he be at by had not are you this",
    "de": "der die und das ist nicht ein eine ich mit zu den von dem auf sich für es sie auch im",
    "fr": "le la les et des est une que dans pas qui du pour sur au il elle je vous ce avec plus",
    "es": "el la los las y en es que una por con del se lo como más pero su al para está yo",
    "it": "il di che è la un una per non sono del con gli della mi lo si ma ha più anche nel",
    "pt": "o os e um uma não de que em do da é com para por se mais as dos na no ao mas ele",
}
"""Commonest words, without most of those that several of these languages share."""
LANGUAGES = ("zh", "en", "ja", "ko", "ru", "ar", "el", "he", "hi", "th", "de", "fr", "es", "it")
LANGUAGES += ("pt", "latin", "none")
LETTERS = 0.2  # share of letters below which a text has no language
DENSE = 3  # a Han, kana or Hangul character says about as much as three letters
KANA = 0.1  # share of kana among Han and kana from which they are Japanese
COMMON = 0.1  # share of common words from which they name the language
LOOKED_AT = 1000  # characters whose words are counted


def languages_of(texts: Sequence[str]) -> list[str]:
    """The language of each text, one of `LANGUAGES`."""
    return [
        _language(text, counts)
        for text, counts in zip(texts, _letters(texts).tolist(), strict=True)
    ]


def _letters(texts: Sequence[str]) -> np.ndarray:
    """(texts, scripts + 1) int64: characters of each script, and at the end the white space and
    other characters."""
    kinds = len(NAMES) + 1
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), "<u4")
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    owners = np.repeat(np.arange(len(texts), dtype=np.int64) * kinds, lengths)
    found = np.bincount(owners + _table()[codes], minlength=kinds * len(texts))
    return found.reshape(len(texts), kinds)


def _language(text: str, counts: list[int]) -> str:
    found = dict(zip(NAMES, counts, strict=False))
    if sum(found.values()) < LETTERS * sum(counts) or not sum(found.values()):
        return "none"
    for name in ("zh", "ja", "ko"):
        found[name] *= DENSE
    if found["ja"] >= KANA * (found["ja"] + found["zh"]):
        found["ja"] += found.pop("zh")
    best = max(found, key=lambda name: found[name])
    return best if best != "latin" else _by_words(text[:LOOKED_AT])


def _by_words(text: str) -> str:
    """A language of Latin letters by its commonest words."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    shares = {name: sum(word in common for word in words) for name, common in _common().items()}
    best = max(shares, key=lambda name: shares[name])
    return best if shares[best] >= max(1, COMMON * len(words)) else "latin"


@cache
def _common() -> dict[str, frozenset[str]]:
    return {name: frozenset(words.split()) for name, words in WORDS.items()}


@cache
def _table() -> np.ndarray:
    """(0x110000,) uint8: the number of each character's script."""
    table = np.full(0x110000, len(NAMES), dtype=np.uint8)
    for number, ranges in enumerate(SCRIPTS.values()):
        for first, stop in ranges:
            table[first:stop] = number
    return table
