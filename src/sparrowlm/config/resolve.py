"""Derived settings are filled in once, and the whole is checked once."""

from __future__ import annotations

from dataclasses import replace

from sparrowlm.config.load import near_miss
from sparrowlm.config.schema import GATED, LORA_TARGETS, LoraConfig, ModelConfig, Recipe
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


def lora_targets(lora: LoraConfig, model: ModelConfig) -> tuple[str, ...]:
    """The products of a block that get a low-rank change, in the block's order.

    `gate` is passed over in a model whose MLP has none, so that one list serves every shape.

    Args:
        lora: with a rank above zero.
        model: a shape.

    Raises:
        ConfigError: every impossible setting, in one message.
    """
    faults = []
    if lora.rank < 1:
        faults.append(f"lora.rank is {lora.rank}, and must be above zero")
    if not lora.alpha > 0:
        faults.append(f"lora.alpha is {lora.alpha}, and must be above zero")
    if not 0 <= lora.dropout < 1:
        faults.append(f"lora.dropout {lora.dropout} is not in [0, 1)")
    for name in lora.targets:
        if name == "router":
            faults.append("lora.targets names router, whose odds choose experts: it stays frozen")
        elif name not in LORA_TARGETS:
            faults.append(f"lora.targets names {name!r}{near_miss(name, LORA_TARGETS)}")
    stacked = [name for name in ("gate", "up", "down") if name in lora.targets]
    if model.n_experts and stacked:
        faults.append(
            f"lora.targets names {', '.join(stacked)}, which the model has once for each expert,"
            ' stacked into one tensor: only attention can be adapted; set it to ["q", "k", "v",'
            ' "o"]'
        )
    lacking = () if model.mlp in GATED else ("gate",)
    found = tuple(name for name in LORA_TARGETS if name in lora.targets and name not in lacking)
    if not faults and not found:
        faults.append(f"lora.targets {list(lora.targets)} names no layer of this model")
    if faults:
        raise ConfigError("; ".join(faults), where="[lora]")
    return found


def check_lora(recipe: Recipe) -> None:
    """Hold `[lora]` to the model of a recipe, where it asks for adapters at all.

    Raises:
        ConfigError: an impossible setting, or nothing to adapt.
    """
    if not recipe.lora.rank:
        return
    lora_targets(recipe.lora, recipe.model)
    if not recipe.init.from_:
        raise ConfigError(
            "asks for low-rank changes, and init.from names no run to change",
            where="lora.rank",
            why="random weights that stay frozen under small changes would learn next to nothing",
            fix="set init.from to a trained run, or lora.rank = 0",
        )


def learns_to_answer(recipe: Recipe) -> bool:
    """Whether a stage trains on conversations, so that its model is talked with by turns.

    >>> learns_to_answer(Recipe(stage="sft")), learns_to_answer(Recipe(stage="pretrain"))
    (True, False)
    """
    match recipe.stage:
        case "pretrain":
            return False
        case "distill":
            return recipe.data.kind == "chats"
        case "grpo" | "ppo":
            return recipe.rollout.chat
        case "sft" | "dpo" | "reward":
            return True
