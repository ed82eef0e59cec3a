"""Between what limits the numbers of a recipe lie; sizes that depend on each other are checked
where they are resolved, and a rollout in `config.rollout`."""

from __future__ import annotations

import math

from sparrowlm.config.schema import Recipe
from sparrowlm.errors import ConfigError

# Key, least, strict: whether the number must be above that, not just at it.
LEAST: tuple[tuple[str, float, bool], ...] = (
    ("model.vocab_size", 0, False),
    ("model.n_kv_heads", 0, False),
    ("model.head_dim", 0, False),
    ("model.d_ff", 0, False),
    ("model.rope_theta", 0, True),
    ("model.norm_eps", 0, False),
    ("data.val_fraction", 0, False),
    ("data.workers", 0, False),
    ("data.clean.min_chars", 0, False),
    ("data.clean.max_chars", 0, False),
    ("train.seq_len", 0, False),
    ("train.batch_tokens", 1, False),
    ("train.micro_batch_size", 0, False),
    ("train.max_bad_steps", 1, False),
    ("optim.lr", 0, False),
    ("optim.muon_lr", 0, False),
    ("optim.beta1", 0, False),
    ("optim.beta2", 0, False),
    ("optim.eps", 0, True),
    ("optim.momentum", 0, False),
    ("optim.weight_decay", 0, False),
    ("optim.clip_norm", 0, False),
    ("optim.warmup_steps", 0, False),
    ("optim.cooldown", 0, False),
    ("optim.floor", 0, False),
    ("eval.windows", 0, False),
    ("eval.overlap", 0, False),
    ("eval.micro_batch_size", 0, False),
    ("samples.max_tokens", 1, False),
    ("samples.temperature", 0, False),
    ("samples.top_k", 0, False),
    ("checkpoint.keep_last", 1, False),
    ("lora.rank", 0, False),
    ("preference.beta", 0, True),
    ("preference.label_smoothing", 0, False),
    ("preference.margin", 0, False),
    ("preference.desirable_weight", 0, False),
    ("preference.undesirable_weight", 0, False),
    ("distill.temperature", 0, True),
    ("distill.weight", 0, False),
    ("policy.clip", 0, True),
    ("policy.clip_high", 0, False),
    ("policy.kl_weight", 0, False),
    ("policy.entropy_weight", 0, False),
    ("policy.value_weight", 0, False),
    ("policy.value_clip", 0, False),
    ("policy.discount", 0, False),
    ("policy.gae_lambda", 0, False),
    ("rollout.top_k", 0, False),
    ("rollout.reward_timeout", 0, True),
    ("rollout.reward_workers", 1, False),
    ("rollout.max_calls", 0, False),
    ("rollout.eval_prompts", 0, False),
)
# Key, most, strict: whether the number must be below that.
MOST: tuple[tuple[str, float, bool], ...] = (
    ("model.rope_theta", math.inf, True),
    ("model.norm_eps", math.inf, True),
    ("data.val_fraction", 1, True),
    ("optim.beta1", 1, True),
    ("optim.beta2", 1, True),
    ("optim.momentum", 1, True),
    ("optim.cooldown", 1, False),
    ("optim.floor", 1, False),
    ("eval.overlap", 1, True),
    ("samples.temperature", 100, False),
    ("preference.label_smoothing", 0.5, True),
    ("distill.weight", 1, False),
    ("policy.discount", 1, False),
    ("policy.gae_lambda", 1, False),
)


def check_numbers(recipe: Recipe, where: str = "") -> None:
    """Hold every number of a recipe to its limits; what is no number is in none of them.

    Args:
        recipe: as read.
        where: which of several recipes it is.

    Raises:
        ConfigError: numbers outside of their limits, all in one message.
    """
    faults = []
    for key, least, strict in LEAST:
        value = _number(recipe, key)
        if not (value > least if strict else value >= least):
            wanted = f"above {least:g}" if strict else f"{least:g} or more"
            faults.append(f"{key} is {value}, and must be {wanted}")
    for key, most, strict in MOST:
        value = _number(recipe, key)
        if value > most or (strict and value == most):
            wanted = f"below {most:g}" if strict else f"{most:g} or less"
            faults.append(f"{key} is {value}, and must be {wanted}")
    if faults:
        raise ConfigError("; ".join(faults), where=where)


def _number(recipe: Recipe, key: str) -> float:
    held: object = recipe
    for name in key.split("."):
        held = getattr(held, name)
    assert isinstance(held, int | float), key
    return held
