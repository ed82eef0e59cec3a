"""Means, their errors, and pass@k, against enumeration."""

from __future__ import annotations

import math
import statistics
from itertools import combinations

import pytest

from sparrowlm.evaluate.figures import Figure, mean_of, pass_at


@pytest.mark.parametrize("written", [1, 2, 5, 7])
def test_pass_at_k_against_all_ways_to_draw(written: int) -> None:
    for right in range(written + 1):
        is_right = [number < right for number in range(written)]
        for k in range(1, written + 1):
            draws = [any(draw) for draw in combinations(is_right, k)]
            assert pass_at(k, written, right) == pytest.approx(statistics.mean(draws), abs=1e-12)


def test_pass_at_1_is_the_share_and_pass_at_n_whether_any() -> None:
    assert pass_at(1, 200, 50) == pytest.approx(0.25, abs=1e-12)
    assert pass_at(200, 200, 1) == 1.0
    assert pass_at(10, 200, 0) == 0.0
    # Chen et al. 2021 compute it as a product; 1 - (1 - c/n)^k would be less.
    product = 1 - math.prod(1 - 10 / n for n in range(200 - 50 + 1, 200 + 1))
    assert pass_at(10, 200, 50) == pytest.approx(product, abs=1e-12)
    assert pass_at(10, 200, 50) > 1 - (1 - 50 / 200) ** 10


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_more_than_were_written_is_none(k: int) -> None:
    with pytest.raises(ValueError, match="of 4"):
        pass_at(k, 4, 1)


def test_a_mean_with_its_error() -> None:
    values = [0.0, 1.0, 1.0, 0.5, 0.25]
    found = mean_of(values)
    assert found.value == pytest.approx(statistics.mean(values))
    assert found.stderr == pytest.approx(statistics.stdev(values) / math.sqrt(5))
    assert mean_of([1.0]).stderr is None
    assert mean_of([]).value is None


def test_no_number_is_null() -> None:
    assert Figure(math.inf, 3).as_json() == {
        "value": None, "stderr": None, "sum": None, "count": 3
    }  # fmt: skip
