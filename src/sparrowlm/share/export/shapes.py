"""The name that a shape has elsewhere, or the settings that keep it from having one.

Llama, Qwen3, Qwen3-MoE and GPT-2 are settings of one Transformer here. `STANDARD` says which
settings each of them fixes; a format may fix more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparrowlm.config import ModelConfig
from sparrowlm.share.huggingface import ACTIVATIONS

Limits = Mapping[str, Mapping[str, tuple[Any, ...]]]
"""By `model_type`: the values that a setting may have."""

_LLAMA = {"norm": ("rms",), "positions": ("rope",), "mlp": ("swiglu",), "head_bias": (False,)}
STANDARD: Limits = {
    "qwen3": _LLAMA | {"qk_norm": (True,), "bias": (False,), "n_experts": (0,)},
    "qwen3_moe": _LLAMA | {"qk_norm": (True,), "bias": (False,)},
    "llama": _LLAMA | {"qk_norm": (False,), "n_experts": (0,)},
    "gpt2": {
        "norm": ("layer",),
        "positions": ("learned",),
        "mlp": tuple(dict.fromkeys(ACTIVATIONS.values())),
        "qk_norm": (False,),
        "head_bias": (False,),
        "n_experts": (0,),
    },
}
TITLES = {"qwen3": "Qwen3", "qwen3_moe": "Qwen3-MoE", "llama": "Llama", "gpt2": "GPT-2"}


def standard_name(config: ModelConfig, more: Limits | None = None) -> tuple[str, list[str]]:
    """The shape that is nearest, and every setting in which this one differs from it.

    Args:
        config: a resolved shape.
        more: what a format fixes besides.

    Returns:
        A `model_type` of Hugging Face's, and faults; without any, the shape is that one.

    >>> standard_name(resolve_model(ModelConfig(vocab_size=9, mlp="relu2")))
    ('qwen3', ['model.mlp = "relu2" (Qwen3 has "swiglu")'])
    """
    found = {
        kind: _faults(config, kind, limits | dict((more or {}).get(kind, {})))
        for kind, limits in ((kind, dict(limits)) for kind, limits in STANDARD.items())
        if kind != "qwen3_moe" or config.n_experts
    }
    kind = min(found, key=lambda kind: (_far(found[kind]), len(found[kind])))
    return kind, found[kind]


def _far(faults: list[str]) -> int:
    """How many of the settings that tell the families apart are faults."""
    apart = ("model.norm ", "model.positions ", "model.n_experts ")
    return sum(fault.startswith(apart) for fault in faults)


def _faults(config: ModelConfig, kind: str, limits: Mapping[str, tuple[Any, ...]]) -> list[str]:
    faults = []
    for name, allowed in limits.items():
        if (value := getattr(config, name)) not in allowed:
            known = " or ".join(map(_toml, allowed))
            faults.append(f"model.{name} = {_toml(value)} ({TITLES[kind]} has {known})")
    if kind == "gpt2":
        if config.n_kv_heads != config.n_heads:
            faults.append(
                f"model.n_kv_heads = {config.n_kv_heads} (GPT-2 has as many as model.n_heads,"
                f" {config.n_heads})"
            )
        if config.n_heads * config.head_dim != config.d_model:
            faults.append(
                f"model.head_dim = {config.head_dim} (GPT-2 has model.d_model / model.n_heads,"
                f" {config.d_model / config.n_heads:g})"
            )
    return faults


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)
