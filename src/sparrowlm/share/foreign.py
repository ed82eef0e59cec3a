"""Other projects' checkpoints under Sparrow's names.

One table, `READERS`, says by which tensor a project is known and what reads it. What a file does
not tell has the value of its project, and `Opened.notes` says so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparrowlm.config import ModelConfig
from sparrowlm.errors import ConfigError, DataError, RunError
from sparrowlm.share.asked import Asked, bend, check_asked, settled, tells_itself
from sparrowlm.share.huggingface import (
    GPT2,
    gpt2_tensors,
    llama_tensors,
    read_huggingface,
    whole,
    zero_biases,
)
from sparrowlm.share.llama2c import is_bin, read_bin
from sparrowlm.share.opening import Opened, Tensors, block_count, open_tensors, rename

# llama2.c's names, which its .bin files do not spell but imply.
LLAMA2C = {
    "embed": "tok_embeddings",
    "blocks.{}.attention_norm": "layers.{}.attention_norm",
    "blocks.{}.attention.q": "layers.{}.attention.wq",
    "blocks.{}.attention.k": "layers.{}.attention.wk",
    "blocks.{}.attention.v": "layers.{}.attention.wv",
    "blocks.{}.attention.o": "layers.{}.attention.wo",
    "blocks.{}.mlp_norm": "layers.{}.ffn_norm",
    "blocks.{}.mlp.gate": "layers.{}.feed_forward.w1",
    "blocks.{}.mlp.up": "layers.{}.feed_forward.w3",
    "blocks.{}.mlp.down": "layers.{}.feed_forward.w2",
    "norm": "norm",
    "head": "output",
}
MINIMIND_VOCABULARY = 6400
# train-llm-from-scratch, which trains on the Pile; `join_heads` has put its heads together.
PILE = {
    "embed": "token_embed",
    "positions": "position_embed",
    "blocks.{}.attention_norm": "attn_blocks.{}.ln1",
    "blocks.{}.attention.q": "attn_blocks.{}.attn.query",
    "blocks.{}.attention.k": "attn_blocks.{}.attn.key",
    "blocks.{}.attention.v": "attn_blocks.{}.attn.value",
    "blocks.{}.attention.o": "attn_blocks.{}.attn.proj",
    "blocks.{}.mlp_norm": "attn_blocks.{}.ln2",
    "blocks.{}.mlp.up": "attn_blocks.{}.mlp.hidden",
    "blocks.{}.mlp.down": "attn_blocks.{}.mlp.proj",
    "norm": "layer_norm",
    "head": "lm_head",
}
# What shapes and values raise that no model has, wherever they are first made use of.
MALFORMED = (LookupError, TypeError, ValueError, RuntimeError, ArithmeticError, AttributeError)


class Foreign(NamedTuple):
    """A checkpoint that was understood."""

    project: str
    why: str
    """What it was recognized by."""
    config: ModelConfig
    opened: Opened
    """Its tensors by Sparrow's names."""


class Reader(NamedTuple):
    """How one project is known and read."""

    project: str
    mark: str
    """A tensor that no other project's checkpoints hold."""
    read: Callable[[Opened, Asked], ModelConfig]
    """Puts `tensors` under our names and returns the shape."""
    takes: tuple[str, ...]
    """What it may ask a person: fields of `Asked`."""


def read_foreign(path: Path, asked: Asked) -> Foreign:
    """Recognize a checkpoint, and read it.

    Raises:
        DataError: no such file, a broken one, one that asks to run code, or of no known project.
        RunError: a model that Sparrow's cannot express, or tensors that make none.
    """
    try:
        return _recognized(whole(path), asked)
    except OSError as fault:
        raise DataError(f"cannot be read: {fault.strerror or fault}", where=str(path)) from fault
    except MALFORMED as fault:
        why = f"{type(fault).__name__}: {fault}"
        raise RunError("its tensors make no model", where=str(path), why=why) from fault


def _recognized(path: Path, asked: Asked) -> Foreign:
    if path.is_dir() and (path / "config.json").is_file():
        opened, config = read_huggingface(path)
        kind = opened.settings["model_type"]
        check_asked(asked, "Hugging Face", ())
        return Foreign("Hugging Face", f"config.json, of model type {kind}", config, opened)
    if not path.is_file():
        what = "holds no config.json" if path.is_dir() else "no such file"
        raise DataError(what, where=str(path), fix="name a checkpoint or a Hugging Face folder")
    binary = is_bin(path)
    opened = read_bin(path) if binary else open_tensors(path)
    for project, mark, read, takes in READERS:
        if mark in opened.tensors:
            check_asked(asked, project, takes)
            why = "the header of its .bin" if binary else f"its tensor {mark}"
            return Foreign(project, why, read(opened, asked), opened)
    if any(".lora." in name for name in opened.tensors):
        raise DataError(
            "holds low-rank changes alone, and no model",
            where=str(path),
            why='its tensors have ".lora." in their names, as those of minimind\'s train_lora',
            fix="put them into their base with minimind's merge_lora, and import that",
        )
    some = ", ".join(sorted(opened.tensors)[:3])
    raise DataError(
        "is of no project that can be read",
        where=str(path),
        why=f"its tensors are called {some} …",
        fix=f"give a checkpoint of {', '.join(reader.project for reader in READERS)},"
        " or a Hugging Face folder",
    )


def read_nanogpt(opened: Opened, asked: Asked) -> ModelConfig:
    """GPT-2's shape with exact GELU, and with biases or without. A bare state dict does not tell
    its heads."""
    n_layers = block_count(opened.tensors, "transformer.h.")
    tensors = gpt2_tensors(opened.tensors, conv1d=False)
    opened.tensors = rename(tensors, GPT2, str(opened.path))
    width = opened.shape("embed.weight")[1]
    n_heads = settled(asked, "n_heads", opened.settings.get("n_head"), "nanoGPT")
    if not n_heads:
        n_heads = max(1, width // 64)
        opened.notes.append(
            f"taken as {n_heads} heads of {width // n_heads}, as GPT-2's (--n-heads)"
        )
    if not asked.mlp and "bias" not in opened.settings:
        opened.notes.append(
            "taken with exact GELU, as nanoGPT has it (--mlp gelu_tanh for GPT-2's)"
        )
    return _gpt2_shape(
        opened,
        asked,
        n_layers=n_layers,
        n_heads=n_heads,
        mlp=bend(asked, "gelu"),
        bias="norm.bias" in opened.tensors,
        tie_embeddings=tie(opened),
    )


def read_minimind(opened: Opened, asked: Asked) -> ModelConfig:
    """A Qwen3 (minimind-3) or a Llama (those before), whose file holds weights alone."""
    n_layers = block_count(opened.tensors, "model.layers.")
    opened.tensors = llama_tensors(opened)
    vocab_size, width = opened.shape("embed.weight")
    qk_norm = "blocks.0.attention.q_norm.weight" in opened.tensors
    queries = opened.shape("blocks.0.attention.q.weight")[0]
    keys = opened.shape("blocks.0.attention.k.weight")[0]
    told = queries // opened.shape("blocks.0.attention.q_norm.weight")[0] if qk_norm else 0
    n_heads = settled(asked, "n_heads", told, "minimind") or 8
    if not told and not asked.n_heads:
        opened.notes.append("taken as 8 query heads, as minimind's (--n-heads)")
    max_seq_len = asked.max_seq_len or 32768
    theta = asked.rope_theta or 1e6
    if not asked.rope_theta:
        opened.notes.append("taken with a rotary base of 1e6, as minimind's (--rope-theta)")
    head_dim = max(1, queries // n_heads)
    config = ModelConfig(
        vocab_size=vocab_size,
        d_model=width,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=keys // head_dim,
        head_dim=head_dim,
        d_ff=opened.shape("blocks.0.mlp.gate.weight")[-2],  # (F, D), or (E, F, D) of experts
        max_seq_len=max_seq_len,
        qk_norm=qk_norm,
        tie_embeddings=tie(opened),
        rope_theta=theta,
        # minimind-3 changed it together with adding the norms of queries and keys.
        norm_eps=asked.norm_eps or (1e-6 if qk_norm else 1e-5),
    )
    router = opened.tensors.get("blocks.0.mlp.router.weight")
    if router is None:
        if asked.experts_per_token:
            raise tells_itself(["experts_per_token"], "minimind")
        return config
    if not asked.experts_per_token:
        opened.notes.append("taken as one expert for a token, minimind-3's (--experts-per-token)")
    return replace(config, n_experts=len(router), experts_per_token=asked.experts_per_token or 1)


def read_llama2c(opened: Opened, asked: Asked) -> ModelConfig:
    """A Llama whose rotary pairs are neighbors, where ours are halves apart: llama2.c's, and
    minimind's before 26 April 2025, which had its names and another rotary base."""
    n_layers, settings = block_count(opened.tensors, "layers."), opened.settings
    opened.tensors = rename(opened.tensors, LLAMA2C, str(opened.path))
    vocab_size, width = opened.shape("embed.weight")
    n_heads = settled(asked, "n_heads", settings.get("n_heads"), "llama2.c")
    if not isinstance(n_heads, int) or n_heads < 1 or width % n_heads:
        raise ConfigError(
            "does not tell its number of heads" if not n_heads else f"{n_heads} heads do not fit",
            where=str(opened.path),
            fix="say it: --n-heads 8",
        )
    head_dim = width // n_heads
    for name, weight in opened.tensors.items():
        if re.search(r"\.attention\.[qk]\.weight$", name):
            opened.tensors[name] = halves_apart(weight, head_dim)
    return ModelConfig(
        vocab_size=vocab_size,
        d_model=width,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=opened.shape("blocks.0.attention.k.weight")[0] // head_dim,
        d_ff=opened.shape("blocks.0.mlp.gate.weight")[0],
        max_seq_len=settled(asked, "max_seq_len", settings.get("max_seq_len"), "llama2.c") or 2048,
        qk_norm=False,
        tie_embeddings=tie(opened),
        rope_theta=asked.rope_theta or _neighbor_theta(opened, vocab_size),
        norm_eps=settled(asked, "norm_eps", settings.get("norm_eps"), "llama2.c") or 1e-5,
    )


def _neighbor_theta(opened: Opened, vocab_size: int) -> float:
    """The rotary base of a file with llama2.c's names. Files of llama2.c have settings; one that
    has none may be minimind's, which only the size of its vocabulary shows."""
    if opened.settings:
        return 1e4
    if vocab_size == MINIMIND_VOCABULARY:
        opened.notes.append(
            f"its {vocab_size} tokens are minimind's: taken with its rotary base of 1e6"
            " (--rope-theta 10000 for llama2.c's)"
        )
        return 1e6
    opened.notes.append(
        "taken with llama2.c's rotary base of 10000; minimind before April 2025 has"
        " --rope-theta 1e6"
    )
    return 1e4


def read_pile(opened: Opened, asked: Asked) -> ModelConfig:
    """GPT-2's shape with ReLU, heads kept apart, no bias in queries, keys and values, and one in
    the head. The first version has no output projection: the identity stands for it."""
    tensors, n_heads = join_heads(opened.tensors)
    opened.tensors = rename(tensors, PILE, str(opened.path))
    n_layers = block_count(tensors, "attn_blocks.")
    width = opened.shape("embed.weight")[1]
    opened.tensors |= zero_biases(opened.tensors, r"attention\.[qkv]")
    for layer in range(n_layers):
        o = f"blocks.{layer}.attention.o"
        opened.tensors.setdefault(f"{o}.weight", torch.eye(width))
        opened.tensors.setdefault(f"{o}.bias", torch.zeros(width))
        if asked.score_width:
            q = f"blocks.{layer}.attention.q.weight"
            factor = math.sqrt(width // n_heads / asked.score_width)
            opened.tensors[q] = opened.tensors[q].float() * factor
    return _gpt2_shape(
        opened,
        asked,
        n_layers=n_layers,
        n_heads=n_heads,
        mlp=bend(asked, "relu"),
        bias=True,
        tie_embeddings=False,
        head_bias="head.bias" in opened.tensors,
    )


def _gpt2_shape(opened: Opened, asked: Asked, **own: Any) -> ModelConfig:
    """What all of GPT-2's kin have, sizes read off the tensors, and what is a project's `own`."""
    vocab_size, width = opened.shape("embed.weight")
    return ModelConfig(
        vocab_size=vocab_size,
        d_model=width,
        d_ff=opened.shape("blocks.0.mlp.up.weight")[0],
        max_seq_len=opened.shape("positions.weight")[0],
        norm="layer",
        positions="learned",
        qk_norm=False,
        norm_eps=asked.norm_eps or 1e-5,
        **own,
    )


READERS = (
    Reader(
        "nanoGPT",
        "transformer.h.0.attn.c_attn.weight",
        read_nanogpt,
        ("n_heads", "mlp", "norm_eps"),
    ),
    Reader(
        "minimind",
        "model.layers.0.self_attn.q_proj.weight",
        read_minimind,
        ("n_heads", "max_seq_len", "rope_theta", "norm_eps", "experts_per_token"),
    ),
    Reader(
        "llama2.c",
        "layers.0.attention.wq.weight",
        read_llama2c,
        ("n_heads", "max_seq_len", "rope_theta", "norm_eps"),
    ),
    Reader(
        "train-llm-from-scratch",
        "attn_blocks.0.attn.heads.0.query.weight",
        read_pile,
        ("mlp", "norm_eps", "score_width"),
    ),
)


def halves_apart(weight: Tensor, head_dim: int) -> Tensor:
    """(n H, D) with the rows of every head in our order: the first of each rotary pair, then the
    second of each, where they stood pair by pair."""
    pairs = weight.view(-1, head_dim // 2, 2, weight.shape[-1])  # (n, H/2, 2, D)
    return pairs.transpose(1, 2).reshape(weight.shape)


def join_heads(tensors: Tensors) -> tuple[Tensors, int]:
    """Every `heads.N.query`, `key` and `value` (H, D) as one (n H, D) without the number, and n."""
    joined: Tensors = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"(.*)\.heads\.(\d+)\.(query|key|value)\.weight", name):
            owner, number, part = match.groups()
            parts.setdefault(f"{owner}.{part}.weight", {})[int(number)] = tensor
        else:
            joined[name] = tensor
    for name, heads in parts.items():
        joined[name] = torch.cat([heads[number] for number in sorted(heads)])
    return joined, max(map(len, parts.values()))


def tie(opened: Opened) -> bool:
    """Whether embedding and head are one table; the second of two equal ones is left out."""
    head = opened.tensors.get("head.weight")
    if head is not None and not torch.equal(head, opened.tensors["embed.weight"]):
        return False
    opened.tensors.pop("head.weight", None)
    return True
