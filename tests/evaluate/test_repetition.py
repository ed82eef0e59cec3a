"""Repetition, counted by hand."""

from __future__ import annotations

import pytest

from sparrowlm.evaluate.repetition import distinct, repetition_rate


@pytest.mark.parametrize(
    ("text", "n", "want"),
    [
        ("abcdef", 3, 1.0),
        ("abcabc", 3, 3 / 4),  # abc bca cab abc
        ("aaaaaa", 3, 1 / 4),
        ("aaaaaa", 1, 1 / 6),
        ("ab", 3, 1.0),
        ("", 1, 1.0),
    ],
)
def test_distinct_is_different_ngrams_over_all(text: str, n: int, want: float) -> None:
    assert distinct(text, n) == want


@pytest.mark.parametrize(
    ("text", "n", "window", "want"),
    [
        ("abcdefgh", 4, 128, 0.0),
        ("abababab", 2, 128, 5 / 7),  # ab ba | ab ba ab ba ab
        ("aaaaaa", 2, 128, 4 / 5),
        ("abxyab", 2, 4, 1 / 5),  # the second ab starts four after the first
        ("abxyab", 2, 3, 0.0),
        ("abc", 4, 128, 0.0),
    ],
)
def test_repetition_rate_looks_back_a_window(text, n, window, want) -> None:
    assert repetition_rate(text, n, window) == want


def test_tokens_may_be_ids_or_words() -> None:
    assert distinct([7, 8, 9, 7, 8, 9], 3) == 0.75
    assert repetition_rate(["to", "be", "or", "not", "to", "be"], 2) == 1 / 5
