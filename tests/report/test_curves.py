"""Smoothing, thinning and ticks, against closed forms and by their laws."""

from __future__ import annotations

import doctest
import itertools
import math
import struct
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparrowlm.config import units
from sparrowlm.report import curves, verdict, words
from sparrowlm.report.curves import frame, label, smooth, spread, thin, ticks
from sparrowlm.report.picture import draw_loss
from sparrowlm.report.read import Run

FINITE = st.floats(-1e6, 1e6)


@pytest.mark.parametrize("module", [curves, units, verdict, words], ids=lambda it: it.__name__)
def test_docstring_examples(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.failed == 0
    assert result.attempted > 0


def test_smoothing_keeps_a_straight_line_where_its_window_is_whole() -> None:
    line = [(float(step), 3.0 - 0.01 * step) for step in range(200)]
    calm = smooth(line)
    for (_, exact), (_, value) in list(zip(line, calm, strict=True))[:-5]:
        assert math.isclose(value, exact, abs_tol=1e-9)


def test_thinning_keeps_every_peak() -> None:
    points = [(float(step), 1.0) for step in range(50_000)]
    points[31_415] = (31_415.0, 99.0)
    points[27_182] = (27_182.0, -99.0)
    thinned = thin(points)
    assert len(thinned) <= 1200
    assert (31_415.0, 99.0) in thinned
    assert (27_182.0, -99.0) in thinned
    assert thinned == sorted(thinned)


@given(low=FINITE, width=st.floats(1e-6, 1e6))
def test_ticks_are_few_round_and_inside(low: float, width: float) -> None:
    high = low + width
    shown = ticks(low, high)
    assert 2 <= len(shown) <= 11
    slack = 1e-6 * (abs(low) + width)
    assert all(low - slack <= tick <= high + slack for tick in shown)
    steps = [b - a for a, b in itertools.pairwise(shown)]
    assert max(steps) - min(steps) <= slack


@given(st.floats(1e-6, 1e7), st.floats(0.01, 1e3))
def test_neighboring_ticks_are_labeled_apart(high: float, factor: float) -> None:
    shown = ticks(high / (1 + factor), high)
    labels = [label(tick, shown) for tick in shown]
    assert len(set(labels)) == len(labels)
    assert max(map(len, labels)) <= 9


@given(st.lists(FINITE, min_size=1))
def test_a_frame_has_room(values: list[float]) -> None:
    low, high = frame(values)
    assert low < high
    assert low <= min(values)
    assert high >= max(values)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_labels_are_spread_apart_and_keep_their_order(places: list[float]) -> None:
    moved = spread(places, 0.11, 0.05, 0.95)
    for (a, now_a), (b, now_b) in itertools.combinations(zip(places, moved, strict=True), 2):
        assert abs(now_a - now_b) > 0.08
        if a != b:
            assert (a < b) == (now_a < now_b)


@pytest.mark.parametrize(("steps", "bits"), [(0, False), (1, False), (300, True)])
def test_loss_png_is_a_picture(steps: int, bits: bool, tmp_path: Path) -> None:
    train = [
        {"step": step, "loss": 3.0, "bits_per_byte": 1.4 if bits else None}
        for step in range(1, steps + 1)
    ]
    content = draw_loss(Run(tmp_path, train=train))
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert height > 400
    assert width > (1500 if bits else 800)
