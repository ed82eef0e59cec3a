"""The filters against transformers', the draws against closed forms."""

from __future__ import annotations

import doctest
import itertools
import math

import pytest
import torch
from torch import Tensor
from transformers.generation import logits_process as authority

import sparrowlm.infer.sampling as sampling
import sparrowlm.infer.stops as stops
from sparrowlm.errors import ConfigError
from sparrowlm.infer.sampling import (
    NOT_A_NUMBER,
    Sampling,
    candidates,
    draw,
    next_tokens,
    penalize,
)

LAST_DRAW = 1 - 2.0**-24
"""The greatest number that `draw` gives."""


def _logits(rows: int, size: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))


def _dense(ids: Tensor, probabilities: Tensor, size: int) -> Tensor:
    """(B, V) probabilities by id."""
    return torch.zeros(len(ids), size).scatter(1, ids, probabilities)


def test_the_examples_in_the_docstrings() -> None:
    for module in (sampling, stops):
        result = doctest.testmod(module)
        assert result.attempted > 0
        assert result.failed == 0


@pytest.mark.parametrize("top_k", [0, 1, 5, 1000])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3, 0.0])
@pytest.mark.parametrize("min_p", [0.0, 0.05, 1.0])
def test_distribution_against_transformers(top_k: int, top_p: float, min_p: float) -> None:
    logits = _logits(4, 50)
    history = [[1, 2, 2, 7], [0], [49, 3], [5, 5]]
    for temperature, penalty in itertools.product((0.3, 1.0, 2.0), (1.0, 1.3, 0.8)):
        setting = Sampling(temperature, top_k, top_p, min_p, penalty).filters
        found = candidates(penalize(logits, history, penalty), setting)
        steps = [authority.TemperatureLogitsWarper(temperature)]
        if top_k:
            steps.append(authority.TopKLogitsWarper(top_k))
        if top_p < 1:
            steps.append(authority.TopPLogitsWarper(top_p))
        if min_p:
            steps.append(authority.MinPLogitsWarper(min_p))
        for row, ids in enumerate(history):
            seen = torch.tensor([ids])
            scores = authority.RepetitionPenaltyLogitsProcessor(penalty)(seen, logits[row][None])
            for step in steps:
                scores = step(seen, scores)
            mine = _dense(found[0][row][None], found[1][row][None], 50)
            torch.testing.assert_close(mine, scores.softmax(-1), atol=1e-6, rtol=1e-5)


def test_greedy_takes_the_likeliest_whatever_the_draw() -> None:
    logits = _logits(8, 100)
    greedy = [Sampling(temperature=0.0).filters] * 8
    for number in (0.0, 0.5, LAST_DRAW):
        assert next_tokens(logits, greedy, [number] * 8, [[]] * 8).equal(logits.argmax(-1))


@pytest.mark.parametrize("settings", [{}, {"top_k": 7}, {"top_p": 0.8}, {"min_p": 0.1}])
def test_evenly_spread_draws_give_each_token_its_probability(settings: dict) -> None:
    """The inverse of a distribution function: n even draws give p n, to one either way."""
    count, logits = 4096, _logits(1, 40)
    setting = Sampling(temperature=0.7, **settings).filters
    expected = _dense(*candidates(logits, setting), 40)[0] * count
    draws = [number / count for number in range(count)]
    tokens = next_tokens(logits.expand(count, -1), [setting] * count, draws, [[]] * count)
    assert (tokens.bincount(minlength=40) - expected).abs().max() <= 1.001


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.2}])
def test_the_least_and_the_greatest_draw_stay_among_the_candidates(settings: dict) -> None:
    setting = Sampling(**settings).filters
    for seed in range(50):
        logits = _logits(1, 1000, seed)
        allowed = _dense(*candidates(logits, setting), 1000)[0] > 0
        for number in (0.0, LAST_DRAW):
            assert allowed[next_tokens(logits, [setting], [number], [[]])]


def test_a_row_is_drawn_the_same_alone_and_in_any_batch() -> None:
    kinds = [
        Sampling(),
        Sampling(temperature=0.0),
        Sampling(temperature=0.5, top_k=5),
        Sampling(top_p=0.7, repetition_penalty=1.5),
        Sampling(min_p=0.1, top_k=50),
    ]
    logits = _logits(40, 300)
    filters = [kinds[row % len(kinds)].filters for row in range(40)]
    draws = [draw(3, row, 0) for row in range(40)]
    history = [list(range(row)) for row in range(40)]
    together = next_tokens(logits, filters, draws, history)
    for row in range(40):
        rest = slice(row, row + 1)
        alone = next_tokens(logits[rest], filters[rest], draws[rest], history[rest])
        assert alone.item() == together[row].item()


def test_draws_are_uniform_and_unrelated_between_neighbors() -> None:
    """Chi-square of 100 bins below its 99.9th percentile, 148; correlations within 4 sigma."""
    walks = {
        "positions": [draw(1, 0, n) for n in range(10_000)],
        "samples": [draw(1, n, 0) for n in range(10_000)],
        "seeds": [draw(n, 0, 0) for n in range(10_000)],
    }
    for values in map(torch.tensor, walks.values()):
        assert values.min() >= 0
        assert values.max() < 1
        bins = (values * 100).long().bincount(minlength=100)
        assert ((bins - 100) ** 2 / 100).sum() < 148
        ahead = torch.corrcoef(torch.stack([values[:-1], values[1:]]))[0, 1]
        assert abs(ahead) < 4 / math.sqrt(10_000)
    across = torch.corrcoef(torch.tensor(list(walks.values())))
    assert (across - torch.eye(3)).abs().max() < 4 / math.sqrt(10_000)


def test_a_draw_is_exact_in_float32() -> None:
    for position in range(1000):
        number = draw(0, 0, position)
        assert torch.tensor(number).item() == number


def test_rows_without_numbers_are_marked_and_the_others_kept() -> None:
    logits = _logits(4, 20)
    logits[1, 3] = math.nan
    logits[2] = -math.inf
    logits[3, :19] = -math.inf  # one token alone is a distribution
    for settings in (Sampling(temperature=0.0), Sampling(), Sampling(top_k=5)):
        tokens = next_tokens(logits, [settings.filters] * 4, [0.5] * 4, [[]] * 4).tolist()
        assert tokens[0] >= 0
        assert tokens[1:] == [NOT_A_NUMBER, NOT_A_NUMBER, 19]


def test_extreme_temperatures_stay_numbers() -> None:
    logits = 1e4 * _logits(1, 20)
    assert next_tokens(logits, [Sampling(1e-300).filters], [0.9], [[]]) == logits.argmax()
    flat = candidates(_logits(1, 20), Sampling(100.0).filters)[1]
    torch.testing.assert_close(flat, torch.full((1, 20), 0.05), atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [math.nan, math.inf, -0.1, 1e9, "hot", True]),
        ("top_k", [-1, 2.5, 2**40, True]),
        ("top_p", [math.nan, -0.1, 1.1]),
        ("min_p", [math.nan, -0.1, 1.1]),
        ("repetition_penalty", [math.nan, 0.0, -1.0, 1e9]),
        ("seed", [-1, 2**63, 0.5]),
        ("max_tokens", [0, -5, 2**40, 1.5]),
        ("stop", [("",)]),
    ],
)
def test_an_impossible_setting_is_named(name: str, values: list) -> None:
    for value in values:
        with pytest.raises(ConfigError, match=name):
            Sampling(**{name: value})


def test_all_faults_come_in_one_message() -> None:
    with pytest.raises(ConfigError, match=r"temperature is -1.*top_p is 2.*max_tokens is 0"):
        Sampling(temperature=-1, top_p=2, max_tokens=0)
