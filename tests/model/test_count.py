"""Parameters, operations and memory by arithmetic, against what torch holds."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sparrowlm.config import ModelConfig, resolve_model
from sparrowlm.model.count import (
    active_parameters,
    count_parameters,
    flops_per_token,
    layer_activations,
    training_memory,
)
from sparrowlm.model.transformer import Transformer

MINIMIND = resolve_model(
    ModelConfig(
        vocab_size=6400,
        d_model=512,
        n_layers=8,
        n_heads=16,
        n_kv_heads=8,
        d_ff=1408,
        max_seq_len=512,
        qk_norm=False,
    )
)


def test_minimind_has_26878464_parameters() -> None:
    assert count_parameters(MINIMIND).total == 26_878_464
    with torch.device("meta"):
        model = Transformer(MINIMIND)
    assert sum(parameter.numel() for parameter in model.parameters()) == 26_878_464


def test_every_variant_counts_what_the_model_holds() -> None:
    choices = itertools.product(
        ["rms", "layer"],
        ["rope", "learned"],
        ["swiglu", "reglu", "gelu", "relu2"],
        [1, 4],
        *[[False, True]] * 3,
        [0, 3],
    )
    for norm, positions, mlp, n_kv_heads, qk_norm, bias, tied, n_experts in choices:
        if n_experts and (bias or qk_norm or tied):
            continue
        config = resolve_model(
            ModelConfig(
                vocab_size=31,
                d_model=16,
                n_layers=2,
                n_heads=4,
                head_dim=6,
                max_seq_len=8,
                norm=norm,
                positions=positions,
                mlp=mlp,
                n_kv_heads=n_kv_heads,
                qk_norm=qk_norm,
                bias=bias,
                tie_embeddings=tied,
                head_bias=bias and not tied,
                n_experts=n_experts,
            )
        )
        with torch.device("meta"):
            model = Transformer(config)
        held = sum(parameter.numel() for parameter in model.parameters())
        assert count_parameters(config).total == held, config


def test_active_parameters_leave_out_what_a_token_does_not_see() -> None:
    config = replace(MINIMIND, n_experts=6, experts_per_token=2)
    every, active = count_parameters(config), active_parameters(config)
    idle = 4 * 3 * 512 * 1408 * config.n_layers
    assert every.total - active.total == idle
    assert active_parameters(MINIMIND) == count_parameters(MINIMIND)


@pytest.mark.parametrize("n_experts", [0, 4])
def test_operations_against_torchs_counter(n_experts: int) -> None:
    """A counter that sees the whole T x T of attention, where ours counts the causal half."""
    length = 16
    config = replace(MINIMIND, n_layers=2, vocab_size=128, tie_embeddings=False)
    config = resolve_model(replace(config, n_experts=n_experts))
    model = Transformer(config)
    model.init_weights(seed=0)
    tokens = torch.zeros(2, length, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model.logits(model(tokens).hidden).sum().backward()
    table = counter.get_flop_counts()["Global"]
    products = sum(count for kind, count in table.items() if kind == torch.ops.aten.mm)
    attention = 6 * config.n_layers * config.n_heads * config.head_dim * length
    assert products + attention * tokens.numel() == flops_per_token(config, length) * tokens.numel()


VARIANTS = {
    "qwen3": {},
    "llama": {"qk_norm": False},
    "gpt2": {
        "norm": "layer",
        "positions": "learned",
        "mlp": "gelu_tanh",
        "qk_norm": False,
        "bias": True,
    },
    "relu2": {"mlp": "relu2"},
    "reglu": {"mlp": "reglu"},
    "gqa": {"n_kv_heads": 2},
    "dropout": {"dropout": 0.1},
    "experts": {"n_experts": 4, "experts_per_token": 2},
    "switch": {"n_experts": 8, "experts_per_token": 1, "norm_topk_prob": False, "mlp": "relu"},
}


def kept_bytes(config: ModelConfig, tokens: Tensor, **settings: bool) -> int:
    """What autograd keeps between the passes, weights apart and shared memory once."""
    model = Transformer(config, **settings).train()
    model.init_weights(seed=0)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # an address must not be given out twice while it is counted

    def pack(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in weights:
            kept[memory.data_ptr()] = memory.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(tokens)
    return sum(kept.values())


@pytest.mark.parametrize("length", [128, 512])
@pytest.mark.parametrize("variant", VARIANTS)
def test_activations_are_what_autograd_keeps(variant: str, length: int) -> None:
    base = ModelConfig(vocab_size=500, d_model=256, n_layers=1, n_heads=4, max_seq_len=length)
    tokens = torch.zeros(2, length, dtype=torch.int64)
    one, three = (
        resolve_model(replace(base, **VARIANTS[variant], n_layers=layers)) for layers in (1, 3)
    )
    layer = (kept_bytes(three, tokens) - kept_bytes(one, tokens)) / 2 / tokens.numel() / 4
    assert layer == pytest.approx(layer_activations(one, length, "cpu"), rel=0.02)
    memory = training_memory(three, 2, length, optimizer="adamw", device="cpu")
    assert memory.activations == pytest.approx(kept_bytes(three, tokens), rel=0.15)


def test_checkpointing_keeps_the_inputs_of_blocks() -> None:
    config = resolve_model(replace(MINIMIND, vocab_size=500, d_model=256, n_layers=6))
    tokens = torch.zeros(2, 128, dtype=torch.int64)
    plain = kept_bytes(config, tokens)
    thin = kept_bytes(config, tokens, activation_checkpointing=True)
    assert thin < plain / 8
    planned = training_memory(config, 2, 128, optimizer="adamw", checkpointing=True, device="cpu")
    # Besides, one block's inside while it is computed again.
    inside = 4 * tokens.numel() * layer_activations(config, 128, "cpu")
    assert planned.activations == pytest.approx(thin + inside, rel=0.15)


def test_muon_keeps_one_number_for_a_matrix() -> None:
    counted = count_parameters(MINIMIND)
    adamw = training_memory(MINIMIND, 1, 512, optimizer="adamw").optimizer
    muon = training_memory(MINIMIND, 1, 512, optimizer="muon").optimizer
    assert adamw == 8 * counted.total
    assert adamw - muon == 4 * (counted.attention + counted.mlp)
