"""Other projects' models, written down anew as plain forward passes.

Each takes a state dict under its project's names, and says in a few lines what that project
computes. Nothing of Sparrow's is used, so that an importer cannot agree with itself.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = dict[str, Tensor]


def causal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """(T, H) of one head's queries, keys and values, each (T, H)."""
    scores = q @ k.T * scale
    hidden = torch.ones_like(scores).triu(1).bool()
    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v


def layer_norm(x: Tensor, w: Tensors, name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w.get(f"{name}.bias"), 1e-5)


def linear(x: Tensor, w: Tensors, name: str) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def nanogpt(w: Tensors, ids: Tensor, n_heads: int, *, tanh: bool = False) -> Tensor:
    """(T, V) logits of ids (T,)."""
    x = w["transformer.wte.weight"][ids] + w["transformer.wpe.weight"][: len(ids)]
    for layer in range(99):
        h = f"transformer.h.{layer}"
        if f"{h}.ln_1.weight" not in w:
            break
        q, k, v = linear(layer_norm(x, w, f"{h}.ln_1"), w, f"{h}.attn.c_attn").chunk(3, -1)
        width = q.shape[-1] // n_heads
        heads = zip(q.split(width, -1), k.split(width, -1), v.split(width, -1), strict=True)
        mixed = torch.cat([causal(*head, width**-0.5) for head in heads], -1)
        x = x + linear(mixed, w, f"{h}.attn.c_proj")
        inner = linear(layer_norm(x, w, f"{h}.ln_2"), w, f"{h}.mlp.c_fc")
        if tanh:
            bend = (inner + 0.044715 * inner**3) * math.sqrt(2 / math.pi)
            inner = 0.5 * inner * (1 + torch.tanh(bend))
        else:
            inner = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
        x = x + linear(inner, w, f"{h}.mlp.c_proj")
    return linear(layer_norm(x, w, "transformer.ln_f"), w, "lm_head")


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def half_turned(x: Tensor, theta: float) -> Tensor:
    """(T, H): coordinate i turns with coordinate i + H/2."""
    half = x.shape[-1] // 2
    rates = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(len(x), dtype=torch.float64)[:, None] * rates
    a, b = x[:, :half], x[:, half:]
    sin, cos = angles.sin(), angles.cos()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def neighbor_turned(x: Tensor, theta: float) -> Tensor:
    """(T, H): each two neighbors are a complex number, and turn together."""
    half = x.shape[-1] // 2
    rates = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(len(x), dtype=torch.float64)[:, None] * rates
    numbers = torch.view_as_complex(x.reshape(len(x), half, 2).contiguous())
    return torch.view_as_real(numbers * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def minimind(
    w: Tensors,
    ids: Tensor,
    head_dim: int,
    *,
    eps: float,
    theta: float = 1e6,
    per_token: int = 1,
) -> Tensor:
    """(T, V) logits of ids (T,): heads share keys, and norm queries and keys where the file has
    weights for that."""
    x = w["model.embed_tokens.weight"][ids]
    for layer in range(99):
        h = f"model.layers.{layer}"
        if f"{h}.input_layernorm.weight" not in w:
            break
        y = rms(x, w[f"{h}.input_layernorm.weight"], eps)
        q, k, v = (linear(y, w, f"{h}.self_attn.{part}_proj").split(head_dim, -1) for part in "qkv")
        if f"{h}.self_attn.q_norm.weight" in w:
            q = [rms(one, w[f"{h}.self_attn.q_norm.weight"], eps) for one in q]
            k = [rms(one, w[f"{h}.self_attn.k_norm.weight"], eps) for one in k]
        share = len(q) // len(k)
        mixed = [
            causal(
                half_turned(q[i], theta),
                half_turned(k[i // share], theta),
                v[i // share],
                head_dim**-0.5,
            )
            for i in range(len(q))
        ]
        x = x + linear(torch.cat(mixed, -1), w, f"{h}.self_attn.o_proj")
        y = rms(x, w[f"{h}.post_attention_layernorm.weight"], eps)
        x = x + minimind_mlp(y, w, f"{h}.mlp", per_token)
    return linear(rms(x, w["model.norm.weight"], eps), w, "lm_head")


def minimind_mlp(y: Tensor, w: Tensors, name: str, per_token: int) -> Tensor:
    """(T, D): one MLP, or each token's likeliest experts by their share of each other's odds."""

    def one(x: Tensor, owner: str) -> Tensor:
        gate = F.silu(linear(x, w, f"{owner}.gate_proj"))
        return linear(gate * linear(x, w, f"{owner}.up_proj"), w, f"{owner}.down_proj")

    if f"{name}.gate.weight" not in w:
        return one(y, name)
    rows = []
    for token, odds in zip(y, linear(y, w, f"{name}.gate").softmax(-1), strict=True):
        chosen = odds.argsort(descending=True)[:per_token].tolist()
        mixed = [odds[number] * one(token, f"{name}.experts.{number}") for number in chosen]
        rows.append(torch.stack(mixed).sum(0) / odds[chosen].sum())
    return torch.stack(rows)


def llama2c(w: Tensors, ids: Tensor, n_heads: int, *, theta: float = 1e4) -> Tensor:
    """(T, V) logits of ids (T,)."""
    x = w["tok_embeddings.weight"][ids]
    head_dim = x.shape[-1] // n_heads
    for layer in range(99):
        h = f"layers.{layer}"
        if f"{h}.attention_norm.weight" not in w:
            break
        y = rms(x, w[f"{h}.attention_norm.weight"], 1e-5)
        q, k, v = (linear(y, w, f"{h}.attention.w{part}").split(head_dim, -1) for part in "qkv")
        share = len(q) // len(k)
        mixed = [
            causal(
                neighbor_turned(q[i], theta),
                neighbor_turned(k[i // share], theta),
                v[i // share],
                head_dim**-0.5,
            )
            for i in range(len(q))
        ]
        x = x + linear(torch.cat(mixed, -1), w, f"{h}.attention.wo")
        y = rms(x, w[f"{h}.ffn_norm.weight"], 1e-5)
        gate = F.silu(linear(y, w, f"{h}.feed_forward.w1"))
        x = x + linear(gate * linear(y, w, f"{h}.feed_forward.w3"), w, f"{h}.feed_forward.w2")
    return linear(rms(x, w["norm.weight"], 1e-5), w, "output")


def pile(w: Tensors, ids: Tensor, *, score_width: int = 0) -> Tensor:
    """(T, V) logits of ids (T,). Without `attn.proj` the heads go straight to the stream."""
    x = w["token_embed.weight"][ids] + w["position_embed.weight"][: len(ids)]
    for layer in range(99):
        h = f"attn_blocks.{layer}"
        if f"{h}.ln1.weight" not in w:
            break
        y, heads = layer_norm(x, w, f"{h}.ln1"), []
        for number in range(99):
            name = f"{h}.attn.heads.{number}"
            if f"{name}.query.weight" not in w:
                break
            q, k, v = (linear(y, w, f"{name}.{part}") for part in ("query", "key", "value"))
            heads.append(causal(q, k, v, (score_width or q.shape[-1]) ** -0.5))
        mixed = torch.cat(heads, -1)
        x = x + (linear(mixed, w, f"{h}.attn.proj") if f"{h}.attn.proj.weight" in w else mixed)
        inner = linear(layer_norm(x, w, f"{h}.ln2"), w, f"{h}.mlp.hidden").relu()
        x = x + linear(inner, w, f"{h}.mlp.proj")
    return linear(layer_norm(x, w, "layer_norm"), w, "lm_head")


class Maker:
    """Draws float32 tensors, norms near 1, so that a swapped or forgotten one shows."""

    def __init__(self, seed: int = 7) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.tensors: Tensors = {}

    def __call__(self, name: str, *shape: int, around: float = 0.0) -> None:
        """Draw a weight."""
        drawn = torch.randn(shape, generator=self.generator)
        self.tensors[name] = around + drawn * (0.2 if len(shape) == 2 else 0.1)

    def norm(self, name: str, width: int, *, bias: bool = False) -> None:
        """Draw a norm."""
        self(f"{name}.weight", width, around=1.0)
        if bias:
            self(f"{name}.bias", width)

    def linear(self, name: str, out: int, into: int, *, bias: bool = False) -> None:
        """Draw a product."""
        self(f"{name}.weight", out, into)
        if bias:
            self(f"{name}.bias", out)


V, D, LAYERS, T = 61, 24, 2, 20


def nanogpt_weights(*, bias: bool = True) -> Tensors:
    """Tied, with the mask that older versions keep."""
    make = Maker()
    make("transformer.wte.weight", V, D)
    make("transformer.wpe.weight", T, D)
    for layer in range(LAYERS):
        h = f"transformer.h.{layer}"
        make.norm(f"{h}.ln_1", D, bias=bias)
        make.linear(f"{h}.attn.c_attn", 3 * D, D, bias=bias)
        make.linear(f"{h}.attn.c_proj", D, D, bias=bias)
        make.norm(f"{h}.ln_2", D, bias=bias)
        make.linear(f"{h}.mlp.c_fc", 4 * D, D, bias=bias)
        make.linear(f"{h}.mlp.c_proj", D, 4 * D, bias=bias)
        make.tensors[f"{h}.attn.bias"] = torch.ones(1, 1, T, T).tril()
    make.norm("transformer.ln_f", D, bias=bias)
    make.tensors["lm_head.weight"] = make.tensors["transformer.wte.weight"]
    return make.tensors


def minimind_weights(
    *, qk_norm: bool, head_dim: int, n_heads: int = 8, n_kv: int = 4, experts: int = 0
) -> Tensors:
    """Tied, in half precision as its trainers save."""
    make, inner = Maker(), 40
    make("model.embed_tokens.weight", V, D)
    for layer in range(LAYERS):
        h = f"model.layers.{layer}"
        make.norm(f"{h}.input_layernorm", D)
        make.linear(f"{h}.self_attn.q_proj", n_heads * head_dim, D)
        make.linear(f"{h}.self_attn.k_proj", n_kv * head_dim, D)
        make.linear(f"{h}.self_attn.v_proj", n_kv * head_dim, D)
        make.linear(f"{h}.self_attn.o_proj", D, n_heads * head_dim)
        if qk_norm:
            make.norm(f"{h}.self_attn.q_norm", head_dim)
            make.norm(f"{h}.self_attn.k_norm", head_dim)
        make.norm(f"{h}.post_attention_layernorm", D)
        if experts:
            make.linear(f"{h}.mlp.gate", experts, D)
        for owner in [f"mlp.experts.{number}" for number in range(experts)] or ["mlp"]:
            make.linear(f"{h}.{owner}.gate_proj", inner, D)
            make.linear(f"{h}.{owner}.up_proj", inner, D)
            make.linear(f"{h}.{owner}.down_proj", D, inner)
    make.norm("model.norm", D)
    make.tensors["lm_head.weight"] = make.tensors["model.embed_tokens.weight"]
    return {name: value.half() for name, value in make.tensors.items()}


def llama2c_weights(*, shared: bool, n_heads: int = 6, n_kv: int = 2) -> Tensors:
    """Named as llama2.c's model is."""
    make, inner, keys = Maker(), 40, D // n_heads * n_kv
    make("tok_embeddings.weight", V, D)
    for layer in range(LAYERS):
        h = f"layers.{layer}"
        make.norm(f"{h}.attention_norm", D)
        make.linear(f"{h}.attention.wq", D, D)
        make.linear(f"{h}.attention.wk", keys, D)
        make.linear(f"{h}.attention.wv", keys, D)
        make.linear(f"{h}.attention.wo", D, D)
        make.norm(f"{h}.ffn_norm", D)
        make.linear(f"{h}.feed_forward.w1", inner, D)
        make.linear(f"{h}.feed_forward.w2", D, inner)
        make.linear(f"{h}.feed_forward.w3", inner, D)
    make.norm("norm", D)
    make("output.weight", V, D)
    if shared:
        make.tensors["output.weight"] = make.tensors["tok_embeddings.weight"]
    return make.tensors


def pile_weights(*, projection: bool, n_heads: int = 4) -> Tensors:
    """With the buffers that its modules register."""
    make, width = Maker(), D // n_heads
    make("token_embed.weight", V, D)
    make("position_embed.weight", T, D)
    for layer in range(LAYERS):
        h = f"attn_blocks.{layer}"
        for number in range(n_heads):
            for part in ("key", "query", "value"):
                make.linear(f"{h}.attn.heads.{number}.{part}", width, D)
            make.tensors[f"{h}.attn.heads.{number}.tril"] = torch.ones(T, T).tril()
        if projection:
            make.linear(f"{h}.attn.proj", D, D, bias=True)
        make.norm(f"{h}.ln1", D, bias=True)
        make.norm(f"{h}.ln2", D, bias=True)
        make.linear(f"{h}.mlp.hidden", 4 * D, D, bias=True)
        make.linear(f"{h}.mlp.proj", D, 4 * D, bias=True)
    make.norm("layer_norm", D, bias=True)
    make.linear("lm_head", V, D, bias=True)
    make.tensors["pos_idxs"] = torch.arange(T)
    return make.tensors


def write_llama2c(path: Path, tensors: Tensors, *, version: int, shared: bool) -> None:
    """llama2.c's files, by the description of its format."""
    layers = range(LAYERS)
    per_layer = ["attention.wq", "attention.wk", "attention.wv", "attention.wo"]
    mlp = ["feed_forward.w1", "feed_forward.w2", "feed_forward.w3"]
    norms = ["attention_norm", "ffn_norm"]
    if version == 0:
        names = ["tok_embeddings", norms[0], *per_layer, norms[1], *mlp, "norm"]
    else:
        names = [*norms, "norm", "tok_embeddings", *per_layer, *mlp]
    content = bytearray()
    for name in names:
        single = f"{name}.weight" in tensors
        for full in [name] if single else [f"layers.{layer}.{name}" for layer in layers]:
            content += tensors[f"{full}.weight"].numpy().tobytes()
    if version == 0:
        content += torch.full((T, 4), 9.0).numpy().tobytes()  # cosines and sines
    if not shared:
        content += tensors["output.weight"].numpy().tobytes()
    signed = -V if version == 0 and not shared else V
    shape = struct.pack("<7i", D, 40, LAYERS, 6, 2, signed, T)
    if version:
        shape = struct.pack("<Ii", 0x616B3432, version) + shape + bytes([shared])
        shape = shape.ljust(256, b"\0")
    path.write_bytes(shape + content)


def llama2c_pieces() -> list[tuple[str, float]]:
    """As SentencePiece orders them: specials, bytes, merged pieces by falling score, characters."""
    words = ["▁", "▁a", "▁b", "ab", "▁ab", "aba", "ba", "bab", "▁aba", "cc", "▁cc", "a▁b"]
    specials = ["<unk>", "\n<s>\n", "\n</s>\n"]
    raw = [f"<0x{byte:02X}>" for byte in range(256)]
    merged = [word for word in words if len(word) > 1]
    letters = ["▁", "a", "b", "c", "é"]
    learned = [(piece, -float(rank)) for rank, piece in enumerate([*merged, *letters])]
    return [(piece, 0.0) for piece in [*specials, *raw]] + learned


def write_llama2c_pieces(path: Path) -> Path:
    """Those as llama2.c's tokenizer.bin."""
    content = struct.pack("<I", 8)
    for piece, score in llama2c_pieces():
        piece = piece.replace("▁", " ").encode("utf-8")
        content += struct.pack("<fI", score, len(piece)) + piece
    path.write_bytes(content)
    return path
