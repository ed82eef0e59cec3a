"""A folder in Hugging Face's form, under the standard name of the shape.

    config.json  generation_config.json  model.safetensors (or shards with their index)
    tokenizer.json  tokenizer_config.json …  README.md  manifest.json

Settings that have changed their spelling are written in both: `rope_theta` and `rope_parameters`,
`num_experts` and `num_local_experts`, `torch_dtype` and `dtype`. vLLM and transformers of different
ages read different ones.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch

from sparrowlm import files
from sparrowlm.checkpoint import save_tensors
from sparrowlm.config import ModelConfig
from sparrowlm.errors import RunError
from sparrowlm.share.export.source import Source
from sparrowlm.share.huggingface import ACTIVATIONS, EXPERTS, GPT2, LLAMA, Values, named_there
from sparrowlm.share.opening import Tensors
from sparrowlm.text.tokenizer import TOKENIZER_CONFIG

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CLASSES = {
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "llama": "LlamaForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
SHARD_BYTES = 5_000_000_000  # as transformers cuts


def write_hf(folder: Path, source: Source, kind: str, dtype: str) -> None:
    """Write everything but the model card.

    Args:
        folder: an empty one, which is being published.
        source: what leaves; its weights are in the dtype already.
        kind: of `shapes.standard_name`.
        dtype: of `DTYPES`.
    """
    files.write_json(folder / "config.json", config_of(source, kind, dtype))
    files.write_json(folder / "generation_config.json", generation_of(source))
    save_shards(their_tensors(source.weights, kind), folder)
    source.tokenizer.save(folder)
    config = files.read_json(folder / TOKENIZER_CONFIG)
    config |= {"model_max_length": source.config.max_seq_len}
    # A model's own class (Qwen2's) may add what changes text: tokenizer.json alone decides.
    config |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    if source.template:
        config |= {"chat_template": source.template}
    files.write_json(folder / TOKENIZER_CONFIG, config)


def config_of(source: Source, kind: str, dtype: str) -> Values:
    """The content of `config.json`."""
    eot = source.tokenizer.eot_id
    values = _gpt2_values(source.config) if kind == "gpt2" else _llama_values(source.config)
    return {
        "architectures": [CLASSES[kind]],
        "model_type": kind,
        **values,
        "tie_word_embeddings": source.config.tie_embeddings,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": eot,  # a text begins where another ended
        "eos_token_id": eot,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def generation_of(source: Source) -> Values:
    """The content of `generation_config.json`: how the run wrote its samples, and where it
    stops."""
    eot = source.tokenizer.eot_id
    values: Values = {"bos_token_id": eot, "eos_token_id": source.ends, "pad_token_id": eot}
    plain = {name: value for name, value in values.items() if value not in (None, [])}
    if source.samples.temperature <= 0:
        return plain | {"do_sample": False}
    return plain | {
        "do_sample": True,
        "temperature": source.samples.temperature,
        "top_k": source.samples.top_k,
        "top_p": 1.0,
    }


def _llama_values(config: ModelConfig) -> Values:
    values: Values = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": config.bias,
        "attention_dropout": config.dropout,
    }
    if not config.qk_norm:
        return values | {"mlp_bias": config.bias}
    values |= {"use_sliding_window": False, "max_window_layers": config.n_layers}
    if not config.n_experts:
        return values
    return values | {
        "moe_intermediate_size": config.d_ff,
        "num_experts": config.n_experts,
        "num_local_experts": config.n_experts,
        "num_experts_per_tok": config.experts_per_token,
        "norm_topk_prob": config.norm_topk_prob,
        "router_aux_loss_coef": config.balance_weight,
        "output_router_logits": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _gpt2_values(config: ModelConfig) -> Values:
    activations = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    return {
        "vocab_size": config.vocab_size,
        "n_positions": config.max_seq_len,
        "n_ctx": config.max_seq_len,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.d_ff,
        "activation_function": activations[config.mlp],
        "layer_norm_epsilon": config.norm_eps,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
    }


def their_tensors(weights: Tensors, kind: str) -> Tensors:
    """Our tensors under Hugging Face's names: experts one by one, as published checkpoints hold
    them; GPT-2's queries, keys and values in one, its products (in, out), and zeros for the biases
    that it always has."""
    names = {"gpt2": GPT2, "qwen3_moe": EXPERTS}.get(kind, LLAMA)
    plain: Tensors = {}
    for name, tensor in weights.items():
        module, _, part = name.rpartition(".")
        plain[f"{named_there(module, names)}.{part}"] = tensor
    if kind == "qwen3_moe":
        return _one_by_one(plain)
    return join_gpt2(plain) if kind == "gpt2" else plain


def _one_by_one(tensors: Tensors) -> Tensors:
    """The inverse of `huggingface.stack_experts`."""
    plain: Tensors = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"(.*\.mlp\.experts)\.(\w+_proj)\.weight", name):
            owner, part = match.groups()
            for number, matrix in enumerate(tensor.unbind()):
                plain[f"{owner}.{number}.{part}.weight"] = matrix
        else:
            plain[name] = tensor
    return plain


def join_gpt2(tensors: Tensors, *, conv1d: bool = True) -> Tensors:
    """The inverse of `huggingface.gpt2_tensors`.

    Args:
        tensors: by GPT-2's names, with `c_attn.q`, `c_attn.k` and `c_attn.v` apart.
        conv1d: make the products (in, out), as GPT-2's own are.
    """
    plain: Tensors = {}
    for name, tensor in tensors.items():
        if ".c_attn.q." in name:
            parts = [tensors[name.replace(".c_attn.q.", f".c_attn.{part}.")] for part in "qkv"]
            plain[name.replace(".c_attn.q.", ".c_attn.")] = torch.cat(parts)
        elif ".c_attn." not in name:
            plain[name] = tensor
    for name, tensor in list(plain.items()):
        if re.search(r"\.(c_\w+|ln_\w+)\.weight$", name):
            zeros = tensor.new_zeros(len(tensor))
            plain.setdefault(f"{name.removesuffix('weight')}bias", zeros)
        if conv1d and re.search(r"\.c_\w+\.weight$", name):
            plain[name] = tensor.t()
    return plain


def rounded(weights: Tensors, dtype: str) -> Tensors:
    """Weights in another dtype.

    Raises:
        RunError: a number that it cannot hold.
    """
    found = {name: tensor.to(DTYPES[dtype]) for name, tensor in weights.items()}
    for name, tensor in found.items():
        if not tensor.isfinite().all():
            largest = weights[name].abs().max().item()
            known = "is no number" if math.isnan(largest) else f"reaches {largest:g}"
            raise RunError(
                f"{name} {known}, which {dtype} cannot hold",
                fix="train it again, for it is broken"
                if not math.isfinite(largest)
                else "--dtype float32 or bfloat16",
            )
    return found


def save_shards(tensors: Tensors, folder: Path, limit: int = SHARD_BYTES) -> None:
    """Write `model.safetensors`, or several files and the index that says what is where.

    Args:
        tensors: by Hugging Face's names.
        folder: where to.
        limit: bytes of one file, where more than one tensor is in it.
    """
    shards: list[Tensors] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + tensor.nbytes > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    if len(shards) == 1:
        _save(tensors, folder / "model.safetensors")
        return
    index: dict[str, Any] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _save(shard, folder / name)
        index |= dict.fromkeys(shard, name)
    total = sum(tensor.nbytes for tensor in tensors.values())
    count = sum(tensor.numel() for tensor in tensors.values())
    files.write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": total, "total_parameters": count}, "weight_map": index},
    )


def _save(tensors: Tensors, path: Path) -> None:
    save_tensors(tensors, path, {"format": "pt"})  # transformers before 5 refuses a file without it
    path.chmod(0o644)  # safetensors lets nobody else read it
