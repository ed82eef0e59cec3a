"""A Transformer laid out for reading alone.

At one token a step a model is a stream of its weights through the processor, and between two
products lie a dozen small operations that cost as much as their dispatch: in the Transformer as
it trains, 57 us for each RMSNorm and three products where one would do. Here the same function
has fewer and larger operations: q, k and v are one product, gate and up another; a norm's weight
is folded into the product behind it; rotary angles come from a table. The weights are copies,
in the dtype of the products; the residual stream and the norms stay float32 or wider.

Shapes: B rows, T positions, S keys, D width, N query heads, K key-value heads, H head width,
F MLP width, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparrowlm.config.schema import GATED
from sparrowlm.errors import UserError
from sparrowlm.infer.product import Product, Weights
from sparrowlm.model.attention import cached_attention
from sparrowlm.model.cache import KVCache, Window
from sparrowlm.model.lora import full_weight
from sparrowlm.model.mlp import Mlp
from sparrowlm.model.moe import Experts
from sparrowlm.model.transformer import Block, Output, Transformer, rotary_angles, rotate

_BENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": F.silu,
    "reglu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}


class Layer(NamedTuple):
    """The weights of one block."""

    qkv: Product
    """D to (N + 2K) H."""
    head_norms: Tensor | None
    """(N + K, H): what queries and keys are multiplied by after their norm."""
    o: Product
    mlp: tuple[Product, Product] | Experts
    """D to F, or to 2F where one half gates the other, and F to D; or experts."""


class Decoder:
    """The inference side of a Transformer.

    Args:
        model: left as it is. After its weights have changed a new decoder is needed.
        dtype: of the products and so of the cache; the model's own by default.
        compile: let `torch.compile` fuse the pass of one token, for most of a minute at the first
            one. Nothing on CUDA, where an engine records graphs instead (`Graphs`).
        weights: "int8" rounds those of the products, as `Product` says.

    It takes tokens through a cache as `Transformer.forward` does, and gives the same hidden
    states up to rounding. There is no dropout and no training mode to leave.

    >>> decoder = Decoder(model)
    >>> cache = KVCache(model.config, slots=1, max_len=256, dtype=decoder.dtype)
    >>> decoder.logits(decoder(prompt, cache).hidden[:, -1]).shape  # prompt (1, 17)
    torch.Size([1, 6400])
    """

    @torch.no_grad()
    def __init__(
        self,
        model: Transformer,
        dtype: torch.dtype | None = None,
        *,
        compile: bool = False,
        weights: Weights = "full",
    ) -> None:
        config = self.config = model.config
        weight = model.embed.weight.detach()
        self.dtype, self.device = dtype or weight.dtype, weight.device
        wide = torch.promote_types(weight.dtype, torch.float32)
        self.embed = weight.to(wide)
        bias = model.head_bias
        self._product = partial(Product, dtype=self.dtype, weights=weights)
        self.head = self._product(
            model.head_weight.detach(), None if bias is None else bias.detach()
        )
        self.norm = _norm_weights(model.norm, wide)
        self.layers = [self._layer(block) for block in model.blocks if isinstance(block, Block)]
        if len(self.layers) != config.n_layers:
            raise TypeError("a block of a kind that the decoder does not know")
        # Under RMSNorm x / sqrt(mean(x^2) + eps) = sqrt(W) x / hypot(|x|, sqrt(W eps)).
        self.floor = torch.tensor(math.sqrt(config.d_model * config.norm_eps), **_like(self.embed))
        self.head_floor = torch.tensor(
            math.sqrt(config.head_dim * config.norm_eps), **_like(self.embed)
        )
        # One position more than there is: the cache puts padding there.
        every = torch.arange(config.max_seq_len + 1, device=self.device)
        self.places = self.angles = None
        if config.positions == "learned":
            self.places = F.pad(model.positions.weight.detach().to(wide), (0, 0, 0, 1))
        else:
            angles = rotary_angles(every[None], config.head_dim, config.rope_theta, wide)
            self.angles = torch.cat(angles)  # (2, S + 1, 1, H)
        fuse = compile and self.device.type != "cuda"
        self._one = torch.compile(self._through, dynamic=True) if fuse else self._through
        self.bend, self.gated = _BENDS[config.mlp], config.mlp in GATED

    def __call__(
        self,
        tokens: Tensor,
        cache: KVCache,
        counts: Sequence[int] | Tensor | None = None,
        span: int | None = None,
    ) -> Output:
        """Hidden states (B, T, D) of tokens (B, T) that continue the sequences of a cache.

        Args:
            tokens: (B, T) int64, row b for slot b.
            cache: of this decoder's dtype and device; appended to.
            counts: (B,) how many tokens of each row are real; the rest is padding on the right.
            span: as of `KVCache.window`.

        Raises:
            UserError: more positions than the cache or the model holds.
        """
        window = cache.window(tokens.shape[1], counts, span)
        if window.span > self.config.max_seq_len:
            raise UserError(
                f"{window.span} positions are more than the model's {self.config.max_seq_len}",
                where="model.max_seq_len",
                fix="shorten the prompt, or train with a longer context",
            )
        through = self._one if tokens.shape[1] == 1 else self._through
        hidden = through(tokens, cache, window)
        cache.advance(tokens.shape[1], counts)
        return Output(hidden)

    def step(self, tokens: Tensor, cache: KVCache, window: Window) -> Tensor:
        """Logits (B, V) behind one token for every slot, (B, 1), where its window is known: only
        what runs on the device. The cache does not advance."""
        return self.logits(self._one(tokens, cache, window)[:, -1])

    def _through(self, tokens: Tensor, cache: KVCache, window: Window) -> Tensor:
        """(B, T, D) of tokens (B, T), by way of every layer."""
        x = F.embedding(tokens.flatten(), self.embed)  # (BT, D)
        if self.places is not None:
            x = x + self.places[window.positions].flatten(0, 1)
        angles = None if self.angles is None else self.angles[:, window.positions].unbind()
        for index, layer in enumerate(self.layers):
            heads = layer.qkv(self._normed(x)).view(*tokens.shape, -1, self.config.head_dim)
            q, k, v = self._turned(heads, layer.head_norms, angles)
            keys, values = cache.append(index, k, v, window)
            mixed = cached_attention(q, keys, values, window.mask)  # (B, T, N, H)
            x = x + layer.o(mixed.reshape(len(x), -1))
            x = x + self._mlp(layer.mlp, self._normed(x))
        weight, bias = self.norm
        x = self._normed(x) * weight
        return (x if bias is None else x + bias).view(*tokens.shape, -1)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., V) of hidden (..., D), in the decoder's dtype."""
        return self.head(hidden.flatten(0, -2)).unflatten(0, hidden.shape[:-1])

    def _turned(
        self, heads: Tensor, norms: Tensor | None, angles: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, ...]:
        """Queries (B, T, N, H), keys and values (B, T, K, H), ready for attention, of heads
        (B, T, N + 2K, H) as they leave the product."""
        n_heads, n_kv_heads = self.config.n_heads, self.config.n_kv_heads
        turned, v = heads.split((n_heads + n_kv_heads, n_kv_heads), dim=-2)
        if norms is not None:
            turned = _rms(turned.to(norms.dtype), self.head_floor) * norms
        if angles is not None:
            turned = rotate(turned, *angles)
        q, k = turned.to(v.dtype).split((n_heads, n_kv_heads), dim=-2)
        return q, k, v

    def _mlp(self, mlp: tuple[Product, Product] | Experts, x: Tensor) -> Tensor:
        """(BT, D) of x (BT, D)."""
        if isinstance(mlp, Experts):
            _, weights, chosen = mlp.route(x)
            return mlp.mix(x, weights, chosen)
        wide, down = mlp
        return down(self._bent(wide(x)))

    def _bent(self, x: Tensor) -> Tensor:
        """(BT, F) of what comes up from the stream, (BT, F or 2F)."""
        if not self.gated:
            return self.bend(x)
        gate, up = x.split(self.config.d_ff, dim=-1)
        return self.bend(gate).mul_(up)

    def _normed(self, x: Tensor) -> Tensor:
        """x (BT, D) as a block's norm leaves it, but for what is folded into the product."""
        if self.config.norm == "layer":
            return F.layer_norm(x, x.shape[-1:], eps=self.config.norm_eps)
        return _rms(x, self.floor)

    def _layer(self, block: Block) -> Layer:
        """A block's weights, fused."""
        attention, config = block.attention, self.config
        head_norms = None
        if attention.q_norm is not None and attention.k_norm is not None:
            queries, _ = _norm_weights(attention.q_norm, self.embed.dtype)
            keys, _ = _norm_weights(attention.k_norm, self.embed.dtype)
            every = [queries] * config.n_heads + [keys] * config.n_kv_heads
            head_norms = torch.stack(every)
        return Layer(
            qkv=self._fuse([attention.q, attention.k, attention.v], block.attention_norm),
            head_norms=head_norms,
            o=self._fuse([attention.o]),
            mlp=self._fused_mlp(block.mlp, block.mlp_norm),
        )

    def _fused_mlp(self, mlp: Mlp | Experts, norm: nn.Module) -> tuple[Product, Product] | Experts:
        """An MLP as two products, or experts that hold the norm before them."""
        if isinstance(mlp, Mlp):
            gate = [mlp.gate] if self.config.mlp in GATED else []
            return self._fuse([*gate, mlp.up], norm), self._fuse([mlp.down])
        scale, _ = _norm_weights(norm, self.embed.dtype)
        folded = copy.deepcopy(mlp).to(self.embed.dtype).requires_grad_(False)
        for name, weight in folded.named_parameters():
            if not name.startswith("down"):
                weight.mul_(scale)
        folded.to(self.dtype).router.to(self.embed.dtype)
        return folded

    def _fuse(self, layers: Sequence[nn.Linear], norm: nn.Module | None = None) -> Product:
        """Several layers of one input as one product. A norm g u + b before it is folded in:
        W (g u + b) = (W g) u + W b."""
        wide = self.embed.dtype
        weight = torch.cat([full_weight(layer) for layer in layers]).to(wide)
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        bias = torch.cat(biases).to(wide) if biases else None
        if norm is not None:
            scale, shift = _norm_weights(norm, wide)
            if shift is not None:
                bias = weight @ shift + (0 if bias is None else bias)
            weight = weight * scale
        return self._product(weight, bias)


def _norm_weights(norm: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """What the result of `_normed` is multiplied by, and what is added to it, each (D,)."""
    match norm:
        case nn.RMSNorm(weight=Tensor() as weight):
            return weight.detach().to(dtype) * math.sqrt(weight.numel()), None
        case nn.LayerNorm(weight=Tensor() as weight, bias=bias):
            return weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype)
    raise TypeError(f"the decoder does not know {norm}")


def _rms(x: Tensor, floor: Tensor) -> Tensor:
    """x (..., W) / hypot(|x|, sqrt(W eps)): RMSNorm without its weight and the factor sqrt(W).
    Three operations and 10 us, where `F.rms_norm` takes nine and 50 on a CPU."""
    return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), floor)


def _like(tensor: Tensor) -> dict:
    return {"dtype": tensor.dtype, "device": tensor.device}
