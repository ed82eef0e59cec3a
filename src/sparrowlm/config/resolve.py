"""Derived settings are filled in once, and the whole is checked once."""

from __future__ import annotations

from dataclasses import replace

from sparrowlm.config.schema import GATED, ModelConfig
from sparrowlm.errors import ConfigError


def resolve_model(config: ModelConfig, vocab_size: int = 0) -> ModelConfig:
    """The same shape with every derived size filled in.

    Args:
        config: as written.
        vocab_size: the tokenizer's size. A larger table than that is allowed (50304 against
            50257 makes products faster), a smaller one is an error.

    Raises:
        ConfigError: every impossible size, in one message.

    >>> resolve_model(ModelConfig(d_model=512, n_heads=8), vocab_size=6400).d_ff
    1408
    """
    faults = [
        f"model.{name} is {getattr(config, name)}, and must be above zero"
        for name in ("d_model", "n_layers", "n_heads", "max_seq_len")
        if getattr(config, name) < 1
    ]
    if faults:
        raise ConfigError("; ".join(faults), where="[model]")
    head_dim = config.head_dim or config.d_model // config.n_heads
    if not config.head_dim and config.d_model % config.n_heads:
        faults.append(
            f"model.d_model {config.d_model} does not divide by model.n_heads {config.n_heads};"
            " change one, or set model.head_dim"
        )
    n_kv_heads = config.n_kv_heads or config.n_heads
    if config.n_heads % n_kv_heads:
        faults.append(
            f"model.n_heads {config.n_heads} does not divide by model.n_kv_heads {n_kv_heads}"
        )
    if config.positions == "rope" and head_dim % 2:
        faults.append(f"model.head_dim {head_dim} is odd, and rotary positions turn pairs")
    if not 0 <= config.dropout < 1:
        faults.append(f"model.dropout {config.dropout} is not in [0, 1)")
    if config.head_bias and config.tie_embeddings:
        faults.append("model.head_bias needs model.tie_embeddings = false")
    faults += _expert_faults(config)
    table = config.vocab_size or vocab_size
    if table < 1:
        faults.append("model.vocab_size is 0, and no tokenizer says otherwise")
    elif table < vocab_size:
        faults.append(f"model.vocab_size {table} is below the tokenizer's {vocab_size}")
    if faults:
        raise ConfigError("; ".join(faults), where="[model]")
    return replace(
        config,
        vocab_size=table,
        head_dim=head_dim,
        n_kv_heads=n_kv_heads,
        d_ff=config.d_ff or default_d_ff(config),
    )


def _expert_faults(config: ModelConfig) -> list[str]:
    """What is impossible in the settings of the experts."""
    if not config.n_experts:
        return []
    if config.n_experts < 0:
        return [f"model.n_experts is {config.n_experts}, and must not be below zero"]
    faults = []
    if not 1 <= config.experts_per_token <= config.n_experts:
        faults.append(
            f"model.experts_per_token {config.experts_per_token} is not in 1 to model.n_experts"
            f" {config.n_experts}"
        )
    if config.balance_weight < 0:
        faults.append(f"model.balance_weight {config.balance_weight} is below zero")
    if config.bias:
        faults.append("model.bias is set, and experts have no biases: unset it or model.n_experts")
    return faults


def default_d_ff(config: ModelConfig) -> int:
    """8/3 of the width, up to a multiple of 64, for the three matrices of a gated MLP; four
    times the width for two: about the same number of parameters (Shazeer 2020)."""
    if config.mlp in GATED:
        return -(-8 * config.d_model // 3 // 64) * 64
    return 4 * config.d_model
