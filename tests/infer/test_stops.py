"""Stop strings: pieces make no difference, and nothing of a stop string is shown."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from sparrowlm.infer.stops import StopStrings

TEXT = st.text("abc", max_size=30)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3)


def _reference(text: str, stops: list[str]) -> tuple[str, bool]:
    """Read letter by letter until a stop string is complete."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@given(TEXT, STOPS, st.lists(st.integers(0, 30)))
def test_any_pieces_give_the_text_before_the_first_stop(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    watch = StopStrings(stops)
    shown = ""
    for start, end in itertools.pairwise(edges):
        shown += watch.push(text[start:end])
        assert _reference(text, stops)[0].startswith(shown)
    assert (shown + watch.finish(), watch.found) == _reference(text, stops)


@given(TEXT, STOPS)
def test_no_more_is_held_back_than_could_begin_a_stop(text: str, stops: list[str]) -> None:
    watch = StopStrings(stops)
    shown = watch.push(text)
    if not watch.found:
        held = text[len(shown) :]
        assert not held or any(stop.startswith(held) for stop in stops)
