"""Hugging Face's names and settings for the shapes that have a name there.

`LLAMA` and `GPT2` are the only places where those names stand. They read both ways: ours to
theirs, of modules, with `{}` for the number of a block.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparrowlm import files
from sparrowlm.config import ModelConfig
from sparrowlm.errors import RunError
from sparrowlm.share.opening import Opened, Tensors, read_folder, rename

# Llama, Qwen3 and Qwen3-MoE; minimind took the same names.
LLAMA = {
    "embed": "model.embed_tokens",
    "blocks.{}.attention_norm": "model.layers.{}.input_layernorm",
    "blocks.{}.attention.q": "model.layers.{}.self_attn.q_proj",
    "blocks.{}.attention.k": "model.layers.{}.self_attn.k_proj",
    "blocks.{}.attention.v": "model.layers.{}.self_attn.v_proj",
    "blocks.{}.attention.o": "model.layers.{}.self_attn.o_proj",
    "blocks.{}.attention.q_norm": "model.layers.{}.self_attn.q_norm",
    "blocks.{}.attention.k_norm": "model.layers.{}.self_attn.k_norm",
    "blocks.{}.mlp_norm": "model.layers.{}.post_attention_layernorm",
    "blocks.{}.mlp.gate": "model.layers.{}.mlp.gate_proj",
    "blocks.{}.mlp.up": "model.layers.{}.mlp.up_proj",
    "blocks.{}.mlp.down": "model.layers.{}.mlp.down_proj",
    "norm": "model.norm",
    "head": "lm_head",
}
# Qwen3-MoE, once `stack_experts` has made one tensor of the experts' own.
EXPERTS = LLAMA | {
    "blocks.{}.mlp.router": "model.layers.{}.mlp.gate",
    "blocks.{}.mlp.gate": "model.layers.{}.mlp.experts.gate_proj",
    "blocks.{}.mlp.up": "model.layers.{}.mlp.experts.up_proj",
    "blocks.{}.mlp.down": "model.layers.{}.mlp.experts.down_proj",
}
# GPT-2; nanoGPT took the same names. `c_attn` is queries, keys and values in one: `split_heads`.
GPT2 = {
    "embed": "transformer.wte",
    "positions": "transformer.wpe",
    "blocks.{}.attention_norm": "transformer.h.{}.ln_1",
    "blocks.{}.attention.q": "transformer.h.{}.attn.c_attn.q",
    "blocks.{}.attention.k": "transformer.h.{}.attn.c_attn.k",
    "blocks.{}.attention.v": "transformer.h.{}.attn.c_attn.v",
    "blocks.{}.attention.o": "transformer.h.{}.attn.c_proj",
    "blocks.{}.mlp_norm": "transformer.h.{}.ln_2",
    "blocks.{}.mlp.up": "transformer.h.{}.mlp.c_fc",
    "blocks.{}.mlp.down": "transformer.h.{}.mlp.c_proj",
    "norm": "transformer.ln_f",
    "head": "lm_head",
}
ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu",
               "relu": "relu"}  # fmt: skip
WEIGHTS = r"(pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)"

Values = dict[str, Any]


def read_huggingface(folder: Path) -> tuple[Opened, ModelConfig]:
    """The weights of a Hugging Face folder under Sparrow's names, and its shape.

    Raises:
        RunError: an architecture or a setting that Sparrow's model cannot express, by name.
        DataError: weights that are missing or broken.
    """
    values, config = read_config(folder / "config.json")
    opened = Opened(folder, read_folder(folder), values)
    if config.tie_embeddings:
        opened.tensors.pop("lm_head.weight", None)  # the same table once more
    if values["model_type"] == "gpt2":
        opened.tensors = rename(gpt2_tensors(opened.tensors), GPT2, str(folder))
    else:
        opened.tensors = llama_tensors(opened)
        if config.bias and not values.get("attention_bias"):
            opened.tensors |= zero_biases(opened.tensors, r"attention\.[qkvo]")
        if config.bias and not values.get("mlp_bias"):
            opened.tensors |= zero_biases(opened.tensors, r"mlp\.\w+")
    return opened, config


def whole(path: Path) -> Path:
    """The folder of a file that is a known model's weights, or a part of them, beside its
    `config.json`; any other path as it is."""
    config = path.parent / "config.json"
    if not re.fullmatch(WEIGHTS, path.name) or not path.is_file() or not config.is_file():
        return path
    values = files.read_json(config)
    kind = values.get("model_type") if isinstance(values, dict) else None
    return path.parent if kind in tuple(SHAPES) else path


def read_config(path: Path) -> tuple[Values, ModelConfig]:
    """A `config.json`, and the shape that it says.

    Raises:
        RunError: an architecture or a setting that Sparrow's model cannot express, or no shape.
    """
    values = files.read_json(path)
    kind = values.get("model_type") if isinstance(values, dict) else None
    if kind not in tuple(SHAPES):  # it may be a list, which a dict could not look up
        known = ", ".join(SHAPES)
        raise RunError(f"is a model of type {kind!r}", where=str(path), why=f"read are {known}")
    try:
        faults = [*refused(values), *REFUSED[kind](values)]
        if faults:
            raise RunError(
                f"asks for what Sparrow's model lacks: {'; '.join(faults)}", where=str(path)
            )
        return values, SHAPES[kind](values)
    except KeyError as fault:
        raise RunError(f"lacks {fault.args[0]}", where=str(path)) from fault
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as fault:
        raise RunError(f"says no shape: {fault}", where=str(path)) from fault


def refused(values: Values) -> list[str]:
    """The settings of any architecture that change what is computed and have no counterpart."""
    ropes = [values.get("rope_parameters") or {}, values.get("rope_scaling") or {}, values]
    kinds = {str(rope.get("rope_type", rope.get("type", "default"))) for rope in ropes}
    scaled = ", ".join(sorted(kinds - {"default"}))
    layers = ", ".join(sorted(set(values.get("layer_types") or ()) - {"full_attention"}))
    checks = {
        f"rope_type {scaled}": bool(scaled),
        "partial_rotary_factor": any(rope.get("partial_rotary_factor", 1) != 1 for rope in ropes),
        f"layer_types {layers}": bool(layers),
        "sliding_window": bool(values.get("use_sliding_window")),
        "quantization_config": bool(values.get("quantization_config")),
    }
    return [name for name, asked in checks.items() if asked]


def _llama_refused(values: Values) -> list[str]:
    act = values.get("hidden_act", "silu")
    return [f"hidden_act {act}"] if act not in ("silu", "swish") else []


def _gpt2_refused(values: Values) -> list[str]:
    act = values.get("activation_function", "gelu_new")
    checks = {
        f"activation_function {act}": act not in ACTIVATIONS,
        "scale_attn_by_inverse_layer_idx": values.get("scale_attn_by_inverse_layer_idx", False),
        "scale_attn_weights": not values.get("scale_attn_weights", True),
        "add_cross_attention": values.get("add_cross_attention", False),
    }
    return [name for name, asked in checks.items() if asked]


def _moe_refused(values: Values) -> list[str]:
    checks = {
        "decoder_sparse_step": values.get("decoder_sparse_step", 1) != 1,
        "mlp_only_layers": bool(values.get("mlp_only_layers")),
        "attention_bias": bool(values.get("attention_bias")),
    }
    return [*_llama_refused(values), *(name for name, asked in checks.items() if asked)]


REFUSED: dict[str, Callable[[Values], list[str]]] = {
    "llama": _llama_refused,
    "qwen3": _llama_refused,
    "qwen3_moe": _moe_refused,
    "gpt2": _gpt2_refused,
}


def llama_shape(values: Values) -> ModelConfig:
    """Of a Llama's `config.json`; what it leaves out has the default of transformers."""
    n_heads = values["num_attention_heads"]
    # Of attention_bias and mlp_bias either may be alone: the other's are zeros then.
    bias = values.get("attention_bias", False) or values.get("mlp_bias", False)
    return ModelConfig(
        vocab_size=values["vocab_size"],
        d_model=values["hidden_size"],
        n_layers=values["num_hidden_layers"],
        n_heads=n_heads,
        n_kv_heads=values.get("num_key_value_heads") or n_heads,
        head_dim=values.get("head_dim") or values["hidden_size"] // n_heads,
        d_ff=values["intermediate_size"],
        max_seq_len=values.get("max_position_embeddings", 2048),
        qk_norm=False,
        bias=bool(bias),
        tie_embeddings=values.get("tie_word_embeddings", False),
        rope_theta=rope_theta(values),
        norm_eps=values.get("rms_norm_eps", 1e-6),
    )


def qwen3_shape(values: Values) -> ModelConfig:
    """Of a Qwen3's `config.json`: a Llama's with normed heads, of 128 unless it says so."""
    shape = llama_shape({"head_dim": 128, "max_position_embeddings": 32768} | values)
    return replace(shape, qk_norm=True)


def qwen3_moe_shape(values: Values) -> ModelConfig:
    """Of a Qwen3-MoE's `config.json`: a Qwen3 with experts in every block, whose heads share the
    width out unless it says so."""
    return replace(
        llama_shape({"max_position_embeddings": 32768} | values),
        qk_norm=True,
        d_ff=values["moe_intermediate_size"],
        n_experts=values.get("num_experts") or values["num_local_experts"],
        experts_per_token=values["num_experts_per_tok"],
        norm_topk_prob=values.get("norm_topk_prob", False),
        balance_weight=values.get("router_aux_loss_coef", 0.001),
    )


def gpt2_shape(values: Values) -> ModelConfig:
    """Of a GPT-2's `config.json`."""
    return ModelConfig(
        vocab_size=values["vocab_size"],
        d_model=values["n_embd"],
        n_layers=values["n_layer"],
        n_heads=values["n_head"],
        d_ff=values.get("n_inner") or 4 * values["n_embd"],
        max_seq_len=values.get("n_positions", 1024),
        norm="layer",
        positions="learned",
        mlp=ACTIVATIONS[values.get("activation_function", "gelu_new")],  # pyright: ignore[reportArgumentType]
        qk_norm=False,
        bias=True,
        tie_embeddings=values.get("tie_word_embeddings", True),
        norm_eps=values.get("layer_norm_epsilon", 1e-5),
    )


SHAPES: dict[str, Callable[[Values], ModelConfig]] = {
    "llama": llama_shape,
    "qwen3": qwen3_shape,
    "qwen3_moe": qwen3_moe_shape,
    "gpt2": gpt2_shape,
}


def rope_theta(values: Values) -> float:
    """The rotary base, in the spelling of transformers 5 (`rope_parameters`) or of those before."""
    newer = values.get("rope_parameters") or {}
    return float(newer.get("rope_theta") or values.get("rope_theta") or 10000.0)


def llama_tensors(opened: Opened) -> Tensors:
    """The tensors of a file with Llama's names, or with those of its base model, which have no
    common prefix, under ours; with experts or without."""
    experts = any(".mlp.experts." in name for name in opened.tensors)
    prefixed = {
        re.sub(r"^(?=(embed_tokens|layers|norm)\.)", "model.", name): tensor
        for name, tensor in opened.tensors.items()
    }
    return rename(stack_experts(prefixed), EXPERTS if experts else LLAMA, str(opened.path))


def stack_experts(tensors: Tensors) -> Tensors:
    """Experts as one tensor (E, rows, columns) for each product, whether a file holds them one by
    one (`experts.3.up_proj.weight`) or stacked with gate and up in one (`experts.gate_up_proj`)."""
    plain: Tensors = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"(.*\.mlp\.experts)\.(\d+)\.(\w+_proj)\.weight", name):
            owner, number, part = match.groups()
            parts.setdefault(f"{owner}.{part}.weight", {})[int(number)] = tensor
        elif name.endswith(".mlp.experts.gate_up_proj"):
            owner = name.removesuffix("gate_up_proj")
            gate, up = tensor.chunk(2, dim=1)
            plain |= {f"{owner}gate_proj.weight": gate, f"{owner}up_proj.weight": up}
        elif name.endswith(".mlp.experts.down_proj"):
            plain[f"{name}.weight"] = tensor
        else:
            plain[name] = tensor
    for name, experts in parts.items():
        plain[name] = torch.stack([experts[number] for number in sorted(experts)])
    return plain


def gpt2_tensors(tensors: Tensors, *, conv1d: bool = True) -> Tensors:
    """GPT-2's tensors, one for each of ours.

    Args:
        tensors: by GPT-2's names, with or without their common prefix.
        conv1d: the products are (in, out), as GPT-2's own are; nanoGPT's are (out, in).
    """
    plain: Tensors = {}
    for name, tensor in tensors.items():
        if re.match(r"(wte|wpe|h|ln_f)\.", name):
            name = f"transformer.{name}"
        if conv1d and name.endswith(".weight") and re.search(r"\.(attn|mlp)\.c_", name):
            tensor = tensor.t()
        if ".attn.c_attn." in name:
            plain |= split_heads(name, tensor)
        else:
            plain[name] = tensor
    return plain


def split_heads(name: str, tensor: Tensor) -> Tensors:
    """Queries, keys and values, each (D, D) or (D,), of one tensor (3D, D) or (3D,)."""
    owner, _, kind = name.rpartition(".")
    return {
        f"{owner}.{part}.{kind}": rows for part, rows in zip("qkv", tensor.chunk(3), strict=True)
    }


def named_there(module: str, names: dict[str, str]) -> str:
    """Their name of one of our modules.

    >>> named_there("blocks.3.attention.q", LLAMA)
    'model.layers.3.self_attn.q_proj'
    """
    number = re.search(r"(?<=\.)\d+(?=\.)", module)
    pattern = re.sub(r"(?<=\.)\d+(?=\.)", "{}", module, count=1)
    return names[pattern].format(number and number[0])


def zero_biases(tensors: Tensors, modules: str) -> Tensors:
    """Zeros for the biases that our products have, all or none, and these of the other model lack.

    Args:
        tensors: by our names.
        modules: a pattern of the products, such as `attention.[qkv]`.
    """
    found = re.compile(rf"\.{modules}\.weight$")
    return {
        f"{name.removesuffix('weight')}bias": torch.zeros(len(weight))
        for name, weight in tensors.items()
        if found.search(name)
    }
