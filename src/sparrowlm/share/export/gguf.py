"""One file for llama.cpp and what is built on it.

The tensors' names come from the `gguf` package's own table, by way of Hugging Face's. llama.cpp
turns a Llama's rotary pairs as neighbors, where ours are halves apart, so rows of its queries and
keys are put in that order; for Qwen3 it turns them as we do.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sparrowlm.config import ModelConfig
from sparrowlm.errors import RunError
from sparrowlm.share.export.hf import join_gpt2
from sparrowlm.share.export.source import Source
from sparrowlm.share.huggingface import EXPERTS, GPT2, LLAMA, named_there
from sparrowlm.share.opening import Tensors
from sparrowlm.text.definition import (
    BYTE_TO_CHARACTER,
    PATTERNS,
    Definition,
    merges_of,
    split_pattern,
    vocab_of,
)
from sparrowlm.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gguf import GGUFWriter

DTYPES = ("F32", "F16", "BF16", "Q8_0")
FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}  # llama.cpp's enum llama_ftype
ARCHITECTURES = {"qwen3": "QWEN3", "qwen3_moe": "QWEN3MOE", "llama": "LLAMA", "gpt2": "GPT2"}
# llama.cpp's GELU is the approximation by tanh, and its Qwen3-MoE always scales the odds.
LIMITS = {"gpt2": {"mlp": ("gelu_tanh",)}, "qwen3_moe": {"norm_topk_prob": (True,)}}
# Its names for the two patterns by which our tokenizers cut text.
PRE = {PATTERNS["qwen2"]: "qwen2", PATTERNS["gpt2"]: "gpt-2"}
# What it multiplies in float32 whatever the rest is in.
WIDE = (".ffn_gate_inp.weight", "position_embd.weight")
BLOCK = 32  # numbers that share a scale in Q8_0


def tokenizer_faults(tokenizer: Tokenizer) -> list[str]:
    """What llama.cpp could not do as this tokenizer does it."""
    if tokenizer.kind in ("chars", "bytes"):
        return [f'tokenizer.kind = "{tokenizer.kind}" (llama.cpp knows what "bpe" makes)']
    definition = tokenizer.definition
    model = definition["model"]
    if model.get("type") != "BPE" or not set(BYTE_TO_CHARACTER) <= vocab_of(definition).keys():
        return [f"a tokenizer of the form {model.get('type')} (only byte-level BPE is written)"]
    odd = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
           "byte_fallback", "ignore_merges")  # fmt: skip
    faults = [f"the tokenizer's {name} = {model[name]!r}" for name in odd if model.get(name)]
    if definition.get("normalizer"):
        faults.append("the tokenizer's normalizer, which rewrites text")
    elif split_pattern(definition) not in PRE:
        faults.append(
            "the tokenizer's pre_tokenizer, which cuts text neither as tokenizer.pattern = "
            '"qwen2" nor as "gpt2" does'
        )
    return faults


def write_gguf(path: Path, source: Source, kind: str, dtype: str, license: str) -> list[str]:
    """Write the file.

    Args:
        path: of the file, in a folder that is being published.
        source: what leaves, in float32.
        kind: of `shapes.standard_name`.
        dtype: of `DTYPES`.
        license: as a person told it; empty where nobody did.

    Returns:
        What a person should hear of.
    """
    import gguf

    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[_architecture(kind)])
    _add_shape(writer, source, kind, dtype, license)
    _add_vocabulary(writer, source)
    narrow = []
    for name, tensor in llama_tensors(source, kind).items():
        form = form_of(name, tensor, dtype)
        narrow += [name] if dtype == "Q8_0" and form == "F16" else []
        values = np.ascontiguousarray(tensor.float().numpy())
        if form in ("F32", "F16"):
            writer.add_tensor(name, values.astype(np.float32 if form == "F32" else np.float16))
        else:
            form_number = gguf.GGMLQuantizationType[form]
            packed = gguf.quants.quantize(values, form_number)
            writer.add_tensor(name, packed, raw_dtype=form_number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if not narrow:
        return []
    return [f"F16 instead of Q8_0, whose rows are multiples of {BLOCK}: {', '.join(narrow[:3])}"
            + (f" and {len(narrow) - 3} more" if len(narrow) > 3 else "")]  # fmt: skip


def form_of(name: str, tensor: Tensor, dtype: str) -> str:
    """The dtype in which one tensor is written: norms, biases and what steers stay wide."""
    if tensor.ndim == 1 or name.endswith(WIDE):
        return "F32"
    return "F16" if dtype == "Q8_0" and tensor.shape[-1] % BLOCK else dtype


def llama_tensors(source: Source, kind: str) -> Tensors:
    """The tensors under llama.cpp's names and in its order of rows."""
    import gguf

    config = source.config
    names = {"gpt2": GPT2, "qwen3_moe": EXPERTS}.get(kind, LLAMA)
    plain: Tensors = {}
    for name, tensor in source.weights.items():
        module, _, part = name.rpartition(".")
        if kind == "llama" and module.endswith((".attention.q", ".attention.k")):
            tensor = neighbors(tensor, config.head_dim)
        plain[f"{named_there(module, names)}.{part}"] = tensor
    if kind == "gpt2":
        plain = join_gpt2(plain, conv1d=False)
    table = gguf.get_tensor_name_map(_architecture(kind), config.n_layers)
    found: Tensors = {}
    for name, tensor in plain.items():
        there = table.get_name(name, try_suffixes=(".weight", ".bias"))
        if there is None:
            raise RunError(f"the gguf package has no name for {name}", fix="update it")
        found[there] = tensor
    return found


def neighbors(rows: Tensor, head_dim: int) -> Tensor:
    """(n H, D) or (n H,) with the rows of every head pair by pair, where ours are all first and
    then all second of the pairs: the inverse of `foreign.halves_apart`."""
    halves = rows.view(-1, 2, head_dim // 2, *rows.shape[1:])  # (n, 2, H/2, D)
    return halves.transpose(1, 2).reshape(rows.shape)


def _architecture(kind: str) -> Any:
    import gguf

    return gguf.MODEL_ARCH[ARCHITECTURES[kind]]


def _add_shape(writer: GGUFWriter, source: Source, kind: str, dtype: str, license: str) -> None:
    config: ModelConfig = source.config
    writer.add_name(source.name)
    if license:
        writer.add_license(license)
    writer.add_file_type(FILE_TYPES[dtype])
    writer.add_quantization_version(2)  # ggml.h, GGML_QNT_VERSION
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.n_heads)
    if kind == "gpt2":
        writer.add_layer_norm_eps(config.norm_eps)
        return
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    if kind == "qwen3_moe":
        writer.add_expert_count(config.n_experts)
        writer.add_expert_used_count(config.experts_per_token)
        writer.add_expert_feed_forward_length(config.d_ff)


def _add_vocabulary(writer: GGUFWriter, source: Source) -> None:
    tokenizer, definition = source.tokenizer, source.tokenizer.definition
    names, types = vocabulary(tokenizer, source.config.vocab_size)
    writer.add_tokenizer_model("gpt2")  # byte-level BPE
    writer.add_tokenizer_pre(PRE[_pattern(definition)])
    writer.add_token_list(names)
    writer.add_token_types(types)
    writer.add_token_merges([f"{left} {right}" for left, right in merges_of(definition)])
    if tokenizer.eot_id is not None:
        writer.add_bos_token_id(tokenizer.eot_id)  # a text begins where another ended
        writer.add_eos_token_id(tokenizer.eot_id)
        writer.add_pad_token_id(tokenizer.eot_id)
    turn_ends = [number for number in source.ends if number != tokenizer.eot_id]
    if turn_ends:
        writer.add_eot_token_id(turn_ends[0])
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    if source.template:
        # llama.cpp asks every template that knows enable_thinking to think, where the run answers
        # at once; whoever wants a thought asks for open_thinking.
        thinks = "enable_thinking | default(false) or open_thinking"
        writer.add_chat_template(source.template.replace(thinks, "open_thinking"))


def vocabulary(tokenizer: Tokenizer, size: int) -> tuple[list[str], list[int]]:
    """The name and the kind of every id of the model's table.

    Specials are of kind CONTROL: text never becomes one of them, as in our own tokenizer. Ids
    that stand for nothing, as where the table is larger than the tokenizer, are UNUSED.
    """
    import gguf

    kinds = gguf.TokenType
    vocab = vocab_of(tokenizer.definition)
    names = {number: (piece, kinds.NORMAL) for piece, number in vocab.items()}
    names |= {number: (name, kinds.CONTROL) for name, number in tokenizer.special_ids.items()}
    taken = {name for name, _ in names.values()}
    for number in range(size):
        if number not in names:
            name = f"[PAD{number}]"
            while name in taken:
                name = f"[{name}]"
            names[number] = (name, kinds.UNUSED)
    listed = [names[number] for number in range(size)]
    return [name for name, _ in listed], [int(kind) for _, kind in listed]


def check_gguf(path: Path, source: Source, kind: str, dtype: str) -> str:
    """Read the file back, and compare every tensor with what it was made of.

    Returns:
        What was compared.

    Raises:
        RunError: a tensor is missing, of another shape, or off by more than its dtype rounds.
    """
    import gguf

    wanted = llama_tensors(source, kind)
    held = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    if held.keys() != wanted.keys():
        differ = sorted(held.keys() ^ wanted.keys())
        raise RunError(f"holds other tensors than were written: {differ[:3]}", where=path.name)
    largest = 0.0
    for name, tensor in wanted.items():
        values = gguf.quants.dequantize(held[name].data, held[name].tensor_type)
        found = torch.from_numpy(np.array(values, np.float32)).reshape(tensor.shape)
        bound = allowance(tensor.float(), form_of(name, tensor, dtype))
        off = (found - tensor.float()).abs()
        if not (off <= bound).all():
            raise RunError(f"{name} is not what was written", where=path.name)
        largest = max(largest, off.max().item())
    return f"{len(wanted)} tensors read back, each as {dtype} rounds it: at most {largest:.2g} off"


def allowance(tensor: Tensor, form: str) -> Tensor:
    """How far each number of a tensor (..., D) may be off: by exactly what F32, F16 and BF16 round,
    and in Q8_0 by half a step of its block's scale, which is itself an F16."""
    match form:
        case "F32":
            return torch.zeros_like(tensor)
        case "F16":
            return (tensor.half().float() - tensor).abs()
        case "BF16":
            return (tensor.bfloat16().float() - tensor).abs()
        case _:
            blocks = tensor.unflatten(-1, (-1, BLOCK)).abs().amax(-1, keepdim=True)
            bound = blocks * (0.5 / 127 + 2.0**-11) + 127 * 2.0**-25
            return (bound * 1.001).expand(*bound.shape[:-1], BLOCK).flatten(-2)


def _pattern(definition: Definition) -> str:
    pattern = split_pattern(definition)
    assert pattern is not None  # tokenizer_faults has refused others
    return pattern
