"""How much a text repeats itself, in numbers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def distinct(tokens: Sequence[Hashable], n: int = 3) -> float:
    """The share of n-grams that are different ones (Li et al. 2016): 1 where none comes twice.

    It falls with the length of any text, so compare texts of equal length.

    Args:
        tokens: ids, words or characters; fewer than `n` have no n-gram, and nothing is repeated.
        n: tokens in an n-gram.

    >>> distinct("abcabc", 3)  # abc bca cab abc
    0.75
    """
    grams = _grams(tokens, n)
    return len(set(grams)) / len(grams) if grams else 1.0


def repetition_rate(tokens: Sequence[Hashable], n: int = 4, window: int = 128) -> float:
    """The share of n-grams that stood before, within the last `window` positions: 0 where none
    did, near 1 in a loop. Unlike `distinct` it does not grow with the length of the text.

    Args:
        tokens: ids, words or characters.
        n: tokens in an n-gram.
        window: how many positions back its earlier start may lie.

    >>> repetition_rate("abababab", 2)  # after ab and ba all five have stood before
    0.7142857142857143
    """
    grams = _grams(tokens, n)
    last: dict[tuple[Hashable, ...], int] = {}
    repeated = 0
    for at, gram in enumerate(grams):
        repeated += gram in last and at - last[gram] <= window
        last[gram] = at
    return repeated / len(grams) if grams else 0.0


def _grams(tokens: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    return [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
