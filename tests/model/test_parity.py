"""Logits against transformers' own models under the same random weights."""

from __future__ import annotations

import types
from dataclasses import replace

import pytest
import torch
import transformers
from torch import Tensor, nn

from sparrowlm.config import ModelConfig, resolve_model
from sparrowlm.model.transformer import Transformer

BASE = ModelConfig(
    vocab_size=211, d_model=48, n_layers=3, n_heads=6, n_kv_heads=2, d_ff=80, max_seq_len=40
)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
LAYER_NAMES = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.o_proj",
    "mlp.router": "mlp.gate",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def random_model(config: ModelConfig, dtype: torch.dtype) -> Transformer:
    """Every parameter random, norms and biases too, so that a swapped one shows."""
    generator = torch.Generator().manual_seed(5)
    model = Transformer(resolve_model(config)).to(dtype).eval()
    for parameter in model.parameters():
        values = torch.randn(parameter.shape, generator=generator) * 0.1
        parameter.data.copy_(values + (1.0 if parameter.ndim == 1 else 0.0))
    return model


def llama_weights(model: Transformer) -> dict[str, Tensor]:
    """Our weights under the names of Llama and Qwen3."""
    renamed = {}
    for name, value in model.state_dict().items():
        owner, kind = name.rsplit(".", 1)
        if owner.startswith("blocks."):
            _, layer, part = owner.split(".", 2)
            renamed[f"model.layers.{layer}.{LAYER_NAMES[part]}.{kind}"] = value
        else:
            top = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
            renamed[f"{top[owner]}.{kind}"] = value
    if "lm_head.weight" not in renamed:
        renamed["lm_head.weight"] = model.head_weight
    return renamed


def qwen3_moe_weights(model: Transformer) -> dict[str, Tensor]:
    """The same with experts, of which transformers keeps gate and up as one."""
    renamed = llama_weights(model)
    for layer in range(model.config.n_layers):
        prefix = f"model.layers.{layer}.mlp"
        gate, up, down = (
            renamed.pop(f"{prefix}.{part}_proj.weight") for part in ("gate", "up", "down")
        )
        renamed[f"{prefix}.experts.gate_up_proj"] = torch.cat((gate, up), 1)
        renamed[f"{prefix}.experts.down_proj"] = down
    return renamed


def gpt2_weights(model: Transformer) -> dict[str, Tensor]:
    """Our weights under GPT-2's names: q, k, v in one, and all of its products transposed."""
    own = model.state_dict()
    renamed = {
        "transformer.wte.weight": own["embed.weight"],
        "transformer.wpe.weight": own["positions.weight"],
        "transformer.ln_f.weight": own["norm.weight"],
        "transformer.ln_f.bias": own["norm.bias"],
        "lm_head.weight": model.head_weight,
    }
    for layer in range(model.config.n_layers):
        ours, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
        for kind in ("weight", "bias"):
            renamed[f"{theirs}.ln_1.{kind}"] = own[f"{ours}.attention_norm.{kind}"]
            renamed[f"{theirs}.ln_2.{kind}"] = own[f"{ours}.mlp_norm.{kind}"]
            heads = torch.cat([own[f"{ours}.attention.{part}.{kind}"] for part in "qkv"])
            for name, value in {
                "attn.c_attn": heads,
                "attn.c_proj": own[f"{ours}.attention.o.{kind}"],
                "mlp.c_fc": own[f"{ours}.mlp.up.{kind}"],
                "mlp.c_proj": own[f"{ours}.mlp.down.{kind}"],
            }.items():
                renamed[f"{theirs}.{name}.{kind}"] = value.t() if value.ndim == 2 else value
    return renamed


def without_casts(model: nn.Module) -> None:
    """Take out the float32 of transformers' norms and rotary tables."""

    def norm(self: nn.Module, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * (x * scale)

    def rotary(self: nn.Module, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        width = 2 * len(self.inv_freq)
        pairs = torch.arange(0, width, 2, dtype=x.dtype) / width
        angles = position_ids[..., None].to(x.dtype) / BASE.rope_theta**pairs
        return torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(norm, module)
        elif type(module).__name__.endswith("RotaryEmbedding"):
            module.forward = types.MethodType(rotary, module)


def check(model: Transformer, theirs: nn.Module, weights: dict[str, Tensor]) -> None:
    dtype = model.embed.weight.dtype
    theirs.load_state_dict(weights)
    theirs.to(dtype).eval()
    if dtype == torch.float64:
        without_casts(theirs)
    tokens = torch.randint(0, BASE.vocab_size, (3, 33), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        got, want = model.logits(model(tokens).hidden), theirs(tokens).logits
    assert want.std() > 0.1
    torch.testing.assert_close(got, want, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def llama_settings(config: ModelConfig) -> dict[str, object]:
    config = resolve_model(config)
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_seq_len,
        "tie_word_embeddings": config.tie_embeddings,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attn_implementation": "sdpa",
    }


@dtypes
@pytest.mark.parametrize("tied", [True, False])
def test_logits_against_transformers_qwen3(dtype: torch.dtype, tied: bool) -> None:

    config = replace(BASE, tie_embeddings=tied, head_dim=16)  # not d_model / n_heads
    model = random_model(config, dtype)
    theirs = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**llama_settings(config)))
    check(model, theirs, llama_weights(model))


@dtypes
@pytest.mark.parametrize("bias", [True, False])
def test_logits_against_transformers_llama(dtype: torch.dtype, bias: bool) -> None:

    config = replace(BASE, qk_norm=False, bias=bias, tie_embeddings=False)
    model = random_model(config, dtype)
    settings = {**llama_settings(config), "attention_bias": bias, "mlp_bias": bias}
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
    check(model, theirs, llama_weights(model))


@dtypes
@pytest.mark.parametrize(("per_token", "normalized"), [(1, False), (2, True), (3, False)])
def test_logits_against_transformers_qwen3_moe(
    dtype: torch.dtype, per_token: int, normalized: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(
        BASE, n_experts=6, experts_per_token=per_token, norm_topk_prob=normalized, d_ff=32
    )
    settings = llama_settings(config) | {
        "num_experts": config.n_experts,
        "num_experts_per_tok": per_token,
        "moe_intermediate_size": config.d_ff,
        "norm_topk_prob": normalized,
        "experts_implementation": "eager",  # the grouped kernel knows no float64
    }
    theirs = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**settings))
    model = random_model(config, dtype)
    for name, parameter in model.named_parameters():
        if "router" in name:
            parameter.data.mul_(8)  # odds so far apart that rounding chooses no other expert
    if dtype == torch.float64:
        monkeypatch.setattr(torch, "float", torch.float64)  # what their router casts its odds to
    check(model, theirs, qwen3_moe_weights(model))


@dtypes
def test_logits_against_transformers_gpt2(dtype: torch.dtype) -> None:
    config = ModelConfig(
        vocab_size=BASE.vocab_size,
        d_model=48,
        n_layers=3,
        n_heads=6,
        max_seq_len=40,
        norm="layer",
        positions="learned",
        mlp="gelu_tanh",
        qk_norm=False,
        bias=True,
        norm_eps=1e-5,
    )
    model = random_model(config, dtype)
    settings = transformers.GPT2Config(
        vocab_size=config.vocab_size,
        n_positions=config.max_seq_len,
        n_embd=config.d_model,
        n_layer=config.n_layers,
        n_head=config.n_heads,
        attn_implementation="sdpa",
    )
    check(model, transformers.GPT2LMHeadModel(settings), gpt2_weights(model))
