"""The Transformer, read top to bottom.

One decoder whose configuration spans what people train: GPT-2, Llama and Qwen3 are settings of it.

    tokens ─ embed ─┬─ norm ─ attention ─(+)─┬─ norm ─ mlp ─(+)─ … ─ norm ─ hidden (─ head ─ logits)
                    └─────────────────────┘  └─────────────┘

No loss, no optimizer and no device of its own: it computes where its parameters are.

Shapes: B rows, T positions, S keys, D the model's width, N query heads, K key-value heads, H the
width of a head, F the width of the MLP, V the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparrowlm.config import ModelConfig
from sparrowlm.errors import UserError
from sparrowlm.model.attention import cached_attention, causal_attention
from sparrowlm.model.cache import KVCache, Window
from sparrowlm.model.dropout import dropout
from sparrowlm.model.head import product_dtype
from sparrowlm.model.mlp import Mlp
from sparrowlm.model.moe import Experts, Routing, mean_routing
from sparrowlm.model.norm import RMSNorm, make_norm
from sparrowlm.model.rotary import rotary_angles, rotate


class Output(NamedTuple):
    """What a forward pass returns."""

    hidden: Tensor
    """(B, T, D), after the last norm."""
    router: Routing | None = None
    """How the experts share the tokens, as the mean over layers; None without experts."""


class Place(NamedTuple):
    """Where the positions of a pass stand: the same for every layer."""

    rotary: tuple[Tensor, Tensor] | None
    """Cosines and sines, each (B or 1, T, 1, H)."""
    starts: Tensor | None
    """(B, T) where in its row each position's document begins; None: a row is one document."""
    real: Tensor | None
    """(B, T) False on padding; None: there is none."""
    cache: KVCache | None
    window: Window | None
    """Where the tokens stand in the cache."""


class Transformer(nn.Module):
    """Tokens to hidden states.

    Args:
        config: a resolved shape (`config.resolve_model`).
        activation_checkpointing: keep only the input of each block and compute the rest again in
            the backward pass: far less memory for about a third more time.

    The parameters are not usable before `init_weights` or `load_state_dict`.

    >>> model = Transformer(resolve_model(ModelConfig(vocab_size=6400)))
    >>> model.init_weights(seed=1337)
    >>> model.logits(model(tokens).hidden).shape  # tokens (2, 16)
    torch.Size([2, 16, 6400])
    """

    def __init__(self, config: ModelConfig, *, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = activation_checkpointing
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        if config.positions == "learned":
            self.positions = nn.Embedding(config.max_seq_len, config.d_model)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = make_norm(config, config.d_model)
        if not config.tie_embeddings:
            self.head = nn.Linear(config.d_model, config.vocab_size, bias=config.head_bias)

    @property
    def head_weight(self) -> Tensor:
        """(V, D) the tied table, or the head's own."""
        return self.embed.weight if self.config.tie_embeddings else self.head.weight

    @property
    def head_bias(self) -> Tensor | None:
        """(V,) the head's bias, where `head_bias` asks for one."""
        return self.head.bias if self.config.head_bias else None

    def forward(
        self,
        tokens: Tensor,
        segments: Tensor | None = None,
        cache: KVCache | None = None,
        counts: Sequence[int] | Tensor | None = None,
    ) -> Output:
        """Hidden states of tokens.

        Args:
            tokens: (B, T) int64.
            segments: (B, T) int32, the document of each position: a run of equal numbers sees
                nothing outside of it, and its positions start at 0.
            cache: continue the sequences that it holds, row b in slot b, and append to them.
                Never together with `segments`.
            counts: (B,) with a cache, how many tokens of each row are real; the rest is padding
                on the right, which leaves no trace.

        Raises:
            UserError: more positions than `max_seq_len`, or than the cache holds.
        """
        if cache is not None and segments is not None:
            raise ValueError("a cache supplies positions, and so do segments: give one of them")
        place, positions = self._place(tokens, segments, cache, counts)
        x = self.embed(tokens)  # (B, T, D)
        if self.config.positions == "learned":
            x = x + self.positions(positions.clamp(max=self.config.max_seq_len - 1))
        x = dropout(x, self.config.dropout, self.training)
        routings: list[Routing] = []
        for block in self.blocks:
            if self.activation_checkpointing and self.training and torch.is_grad_enabled():
                x, *routed = checkpoint(block, x, place, use_reentrant=False)
            else:
                x, *routed = block(x, place)
            routings += routed
        if cache is not None:
            cache.advance(tokens.shape[1], counts)
        return Output(self.norm(x), mean_routing(routings))

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., V) of hidden (..., D); for inference. Training goes through `model.head`, which
        never holds the logits of a whole batch."""
        return F.linear(hidden, self.head_weight, self.head_bias)

    def _place(
        self,
        tokens: Tensor,
        segments: Tensor | None,
        cache: KVCache | None,
        counts: Sequence[int] | Tensor | None,
    ) -> tuple[Place, Tensor]:
        """What every layer needs to know of the positions, and the positions (B or 1, T)."""
        config, length = self.config, tokens.shape[1]
        window, starts, real = None, None, None
        if cache is not None:
            window = cache.window(length, counts)
            positions, last = window.positions, window.span
        else:
            positions, last = torch.arange(length, device=tokens.device)[None], length
        if segments is not None:
            starts = document_starts(segments)
            positions, real = positions - starts, segments >= 0
        if last > config.max_seq_len:
            raise UserError(
                f"{last} positions are more than the model's {config.max_seq_len}",
                where="model.max_seq_len",
                fix="use shorter rows, or train with a longer context",
            )
        rotary = None
        if config.positions == "rope":
            wide = torch.promote_types(self.embed.weight.dtype, torch.float32)
            rotary = rotary_angles(positions, config.head_dim, config.rope_theta, wide)
        return Place(rotary, starts, real, cache, window), positions

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draw every parameter from `seed`: on the CPU, so the device makes no difference.

        Normal with std 0.02 (GPT-2), but for two: what writes to the residual stream is scaled by
        1/sqrt(2 n_layers), so that the stream does not grow with depth, and the table that makes
        the logits has std min(0.02, 0.3/sqrt(D)), so that the first loss is ln(V) at any width.
        Biases start at 0 and norms at 1.

        Raises:
            RuntimeError: a parameter that no rule speaks of.
        """
        config = self.config
        generator = torch.Generator().manual_seed(seed)
        logits_std = min(0.02, 0.3 / math.sqrt(config.d_model))
        residual_std = 0.02 / math.sqrt(2 * config.n_layers)
        for name, parameter in self.named_parameters():
            owner, kind = name.rsplit(".", 2)[-2:]
            if owner.endswith("norm") and kind == "weight":
                parameter.fill_(1)
            elif kind == "bias":
                parameter.fill_(0)
            elif parameter is self.head_weight:
                _normal(parameter, logits_std, generator)
            elif owner in ("o", "down"):
                _normal(parameter, residual_std, generator)
            elif owner in ("embed", "positions", "q", "k", "v", "gate", "up", "router"):
                _normal(parameter, 0.02, generator)
            else:
                raise RuntimeError(f"no rule initializes {name}")


class Block(nn.Module):
    """Attention, then the MLP or experts, each behind a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.attention_norm = make_norm(config, config.d_model)
        self.attention = Attention(config, layer)
        self.mlp_norm = make_norm(config, config.d_model)
        self.mlp = Experts(config) if config.n_experts else Mlp(config)

    def forward(self, x: Tensor, place: Place) -> tuple[Tensor] | tuple[Tensor, Routing]:
        """(B, T, D) to (B, T, D); with experts, their routing too."""
        x = x + self._drop(self.attention(self.attention_norm(x), place))
        if isinstance(self.mlp, Mlp):
            return (x + self._drop(self.mlp(self.mlp_norm(x))),)
        mixed, routing = self.mlp(self.mlp_norm(x), place.real)
        return x + self._drop(mixed), routing

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training)


class Attention(nn.Module):
    """Causal self-attention; several query heads may share a key-value head (Ainslie et al.
    2023), queries and keys may be normed (Dehghani et al. 2023)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.dropout = layer, config.dropout
        self.heads = (config.n_heads, config.n_kv_heads, config.head_dim)
        queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.q = nn.Linear(config.d_model, queries, bias=config.bias)
        self.k = nn.Linear(config.d_model, keys, bias=config.bias)
        self.v = nn.Linear(config.d_model, keys, bias=config.bias)
        self.o = nn.Linear(queries, config.d_model, bias=config.bias)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None

    def forward(self, x: Tensor, place: Place) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        n_heads, n_kv_heads, width = self.heads
        x = x.to(product_dtype(x))  # once: autocast would do it for each product, and back
        q = self.q(x).unflatten(-1, (n_heads, width))  # (B, T, N, H)
        k = self.k(x).unflatten(-1, (n_kv_heads, width))  # (B, T, K, H)
        v = self.v(x).unflatten(-1, (n_kv_heads, width))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if place.rotary is not None:
            q, k = rotate(q, *place.rotary), rotate(k, *place.rotary)
        q, k = q.to(v.dtype), k.to(v.dtype)  # norms and angles are wider under autocast
        if place.cache is not None and place.window is not None:
            keys, values = place.cache.append(self.layer, k, v, place.window)
            mixed = cached_attention(q, keys, values, place.window.mask)
        else:
            dropped = self.dropout if self.training else 0.0
            mixed = causal_attention(q, k, v, starts=place.starts, dropout=dropped)
        return self.o(mixed.flatten(-2))  # (B, T, N, H) to (B, T, D)


def document_starts(segments: Tensor) -> Tensor:
    """(B, T) the position at which the run of equal segments begins, for each position of it.

    >>> document_starts(torch.tensor([[7, 7, 2, 2]]))
    tensor([[0, 0, 2, 2]])
    """
    begins = F.pad(segments[:, 1:] != segments[:, :-1], (1, 0))  # (B, T) True at a run's first
    positions = torch.arange(segments.shape[1], device=segments.device)
    return torch.where(begins, positions, 0).cummax(dim=1).values


def _normal(parameter: Tensor, std: float, generator: torch.Generator) -> None:
    parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
