"""The schedule at the steps that matter."""

from __future__ import annotations

import math

import pytest

from sparrowlm.optim import Schedule


@pytest.mark.parametrize("kind", ["cosine", "wsd"])
def test_peak_after_warmup_and_floor_at_the_last_step(kind):
    schedule = Schedule(kind, warmup_steps=10, total=100, cooldown_steps=40, floor=0.1)
    assert schedule.scale(0) == pytest.approx(0.1)
    assert schedule.scale(9) == 1.0
    assert schedule.scale(99) == pytest.approx(0.1)
    assert all(0 < schedule.scale(step) <= 1 for step in range(100))


def test_cosine_equals_its_formula():
    schedule = Schedule("cosine", warmup_steps=0, total=101, cooldown_steps=0, floor=0.2)
    for step in range(101):
        expected = 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * step / 100))
        assert schedule.scale(step) == pytest.approx(expected, abs=1e-12)


def test_undecided_length_holds_the_peak():
    schedule = Schedule("wsd", warmup_steps=5, total=0, cooldown_steps=0, floor=0.0)
    assert schedule.scale(10**6) == 1.0


def test_cooldown_is_linear_over_its_steps():
    schedule = Schedule("wsd", warmup_steps=0, total=11, cooldown_steps=10, floor=0.0)
    assert [schedule.scale(step) for step in range(11)] == pytest.approx(
        [1 - step / 10 for step in range(11)]
    )
