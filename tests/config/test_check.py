"""Numbers outside of their limits."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass, replace

import pytest

from sparrowlm.config import Recipe, check_numbers
from sparrowlm.config.check import LEAST, MOST
from sparrowlm.errors import ConfigError

# What else holds a number, or why any will do.
ELSEWHERE = {
    "model.d_model", "model.n_layers", "model.n_heads", "model.max_seq_len", "model.dropout",
    "model.n_experts", "model.experts_per_token", "model.balance_weight",  # resolve_model
    "lora.alpha", "lora.dropout",  # lora_targets
    "tokenizer.vocab_size", "tokenizer.character_budget",  # text/training.py
    "data.clean.near_threshold", "data.replay_share",  # data/clean.py, data/replay.py
    "train.seed",  # any
    "rollout.prompts", "rollout.group_size", "rollout.steps", "rollout.max_tokens",
    "rollout.temperature",  # check_rollout
}  # fmt: skip


def changed(held, key: str, value: object):
    """The recipe with one setting changed."""
    first, _, rest = key.partition(".")
    return replace(held, **{first: changed(getattr(held, first), rest, value) if rest else value})


def numbers(held: object, prefix: str = ""):
    """The keys of all numbers in a recipe."""
    for field in fields(held):  # pyright: ignore[reportArgumentType]
        value, key = getattr(held, field.name), prefix + field.name
        if is_dataclass(value):
            yield from numbers(value, key + ".")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield key


def test_every_number_of_a_recipe_has_limits_somewhere():
    least = {key for key, _, _ in LEAST}
    assert {key for key, _, _ in MOST} <= least
    assert not least & ELSEWHERE
    assert least | ELSEWHERE == set(numbers(Recipe()))


@pytest.mark.parametrize("limits", [LEAST, MOST], ids=["least", "most"])
def test_a_limit_is_met_or_refused_and_beyond_it_all_is(limits):
    for key, limit, strict in limits:
        beyond = math.nextafter(limit, -math.inf if limits is LEAST else math.inf)
        for value in (beyond, math.nan, limit):
            recipe = changed(Recipe(), key, value)
            if value == limit and not strict:
                check_numbers(recipe)
                continue
            with pytest.raises(ConfigError, match=rf"^{key} is .*, and must be [^;]*$"):
                check_numbers(recipe)


def test_faults_are_told_together_with_whose_they_are():
    recipe = changed(changed(Recipe(), "checkpoint.keep_last", -1), "distill.temperature", 0.0)
    told = "stage sft: checkpoint.keep_last is -1, and must be 1 or more; distill.temperature is 0"
    with pytest.raises(ConfigError, match=rf"^{told}.0, and must be above 0$"):
        check_numbers(recipe, "stage sft")
