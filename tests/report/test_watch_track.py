"""Columns of bounded length keep every extreme, every mean, and what a page has already."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparrowlm.report.watch.track import BUCKETS, COLUMNS, Track

VALUES = st.floats(-1e6, 1e6) | st.none() | st.sampled_from([math.nan, math.inf])


def filled(values: Sequence[float | None], buckets: int) -> Track:
    track = Track(buckets)
    for step, value in enumerate(values, 1):
        track.add(
            {"kind": "train", "step": step, "tokens": step * 8, "seconds": step / 4, "x": value}
        )
    return track


@settings(max_examples=40, deadline=None)
@given(values=st.lists(VALUES, max_size=200), buckets=st.sampled_from([2, 4, 8, 64]))
def test_extremes_means_and_places_are_those_of_the_rows(
    values: list[float | None], buckets: int
) -> None:
    track = filled(values, buckets)
    part = track.part()
    assert len(track) <= buckets
    assert len(part["axes"]["step"]) == len(track)
    column = part["columns"].get("x", {"mean": []})
    for bucket in range(len(track)):
        inside = values[bucket * track.width : (bucket + 1) * track.width]
        real = [value for value in inside if value is not None and math.isfinite(value)]
        last = min((bucket + 1) * track.width, len(values))
        assert part["axes"]["step"][bucket] == last
        if not column["mean"]:
            continue
        if not real:
            assert column["mean"][bucket] is None
            continue
        assert column["mean"][bucket] == pytest.approx(sum(real) / len(real), rel=1e-5, abs=1e-3)
        if track.width > 1:
            assert column["low"][bucket] == pytest.approx(min(real), rel=1e-5)
            assert column["high"][bucket] == pytest.approx(max(real), rel=1e-5)


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 9), max_size=20))
def test_what_is_told_piece_by_piece_is_the_whole(sizes: list[int]) -> None:
    """As a page joins it: from the last bucket that it has, or anew where the width changed."""
    track, held, step = Track(8), Track(8).part(), 0
    for size in sizes:
        for _ in range(size):
            step += 1
            track.add({"step": step, "x": step % 5, **({"late": 1.0} if step > 6 else {})})
        same = held["width"] == track.width
        start = len(held["axes"]["step"]) - 1 if same else 0
        news = track.part(start)
        keep = news["start"]
        old = held["columns"]
        held = {
            "start": 0,
            "width": news["width"],
            "axes": {
                name: held["axes"][name][:keep] + values for name, values in news["axes"].items()
            },
            "columns": {
                key: {
                    name: (old.get(key, {}).get(name, [None] * keep) + [None] * keep)[:keep]
                    + values
                    for name, values in parts.items()
                }
                for key, parts in news["columns"].items()
            },
        }
        assert held == track.part()


def test_a_long_run_is_as_small_as_a_short_one() -> None:
    track = Track()
    for step in range(17 * BUCKETS):
        track.add({"step": step, "loss": 2.0, "peak": 100.0 if step == 21_337 else 0.0})
    part = track.part()
    assert BUCKETS // 2 <= len(track) <= BUCKETS
    assert max(part["columns"]["peak"]["high"]) == 100.0
    assert len(json.dumps(part)) < 100 * BUCKETS


def test_names_without_end_are_left_out() -> None:
    track = Track(4)
    for step in range(3 * COLUMNS):
        track.add({"step": step, f"name{step}": 1.0})
    assert len(track.columns) == COLUMNS


def test_a_value_that_is_no_number_is_no_point() -> None:
    part = filled([1.0, None, math.nan, 3.0], 8).part()
    assert part["columns"]["x"]["mean"] == [1.0, None, None, 3.0]
    json.dumps(part, allow_nan=False)
