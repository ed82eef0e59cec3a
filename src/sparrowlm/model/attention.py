"""Causal attention, by the fastest way that the device has.

Shapes: B rows, T query positions, S key positions, N query heads, K key-value heads (N is a
multiple of K, and each serves N/K neighbors), H the width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparrowlm.model.dropout import kept, whole

# Milliseconds forward and backward, two cores, PyTorch 2.15:
#   rows x heads (key-value heads) x positions x width    fused kernel    blocks of 64    of 128
#   float32, 2.5 GHz AVX-512 Xeon without bf16
#   16 x 4 (4) x 64 x 32                                        3.7           4.8         4.9
#   16 x 3 (3) x 128 x 64                                      10.4          11.2        11.4
#   8 x 3 (3) x 256 x 64                                       15.6          16.3        15.8
#   8 x 8 (4) x 512 x 64                                      140            99         106
#   4 x 8 (4) x 1024 x 64                                     195           183         183
#   2 x 8 (4) x 2048 x 64                                     321           364         355
#   bfloat16, Zen 4, where products are cheap and the fused kernel falls further behind
#   16 x 4 (4) x 64 x 32                                        8.9           3.8
#   16 x 3 (3) x 128 x 64                                      17.3           8.6         6.8
#   8 x 3 (3) x 256 x 64                                       17.3          16.5         9.7
#   8 x 8 (4) x 512 x 64                                      134            57          48
#   4 x 8 (4) x 1024 x 64                                     126           125         108
#   2 x 8 (4) x 2048 x 64                                     269           247         181
BLOCKED = {
    2: (128, range(33, 2049)),
    4: (64, range(257, 1025)),
    8: (64, range(257, 1025)),
}
"""By the bytes of a number: queries of a block, and the lengths at which blocks win."""
STEP = 64
"""Positions: where the keys that a block of queries sees begin, with documents."""


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, *, starts: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Every position attends to itself and to what precedes it.

    Args:
        q: (B, T, N, H).
        k: (B, T, K, H).
        v: (B, T, K, H).
        starts: (B, T) int64, the first position that each position sees (where its document
            begins); it must not fall along a row. None: position 0.
        dropout: probability that an attention weight is zeroed.

    Returns:
        (B, T, N, H)
    """
    trains = torch.is_grad_enabled() and q.requires_grad
    size = block_size(q.device.type, q.shape[1], q.dtype.itemsize, dropout)
    if trains and size:
        return _Blocked.apply(q, k, v, starts, size, whole(dropout))
    mask = None
    if starts is not None:
        mask = ~_unseen(starts, 0, q.shape[1], 0)[:, None]  # (B, 1, T, T)
    return _fused(q, k.transpose(1, 2), v.transpose(1, 2), mask, mask is None, dropout)


def cached_attention(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """New positions attend to a cache that already holds them.

    Args:
        q: (B, T, N, H).
        keys: (B, K, S, H).
        values: (B, K, S, H).
        mask: (B, 1, T, S) True where a query sees a key. None: the queries are all there is
            (T = S, causal), or the one last position (T = 1).

    Returns:
        (B, T, N, H)
    """
    rows, length, _, width = q.shape
    if length == 1:
        # The heads that share keys stand as that many queries: one product, and no copy of keys.
        folded = q.reshape(rows, keys.shape[1], -1, width)  # (B, K, N/K, H)
        return F.scaled_dot_product_attention(folded, keys, values, mask).reshape(q.shape)
    return _fused(q, keys, values, mask, mask is None, 0.0)


def block_size(device: str, length: int, itemsize: int, dropout: float = 0.0) -> int:
    """Queries of a block where blocks beat the fused kernel in training, else 0.

    Args:
        device: its type.
        length: T of the rows.
        itemsize: bytes of a number in the products.
        dropout: of the attention weights. A CPU has no fused kernel with it: blocks always win.
    """
    size, lengths = BLOCKED[itemsize]
    return size if device == "cpu" and (dropout or length in lengths) else 0


def _fused(
    q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool, dropout: float
) -> Tensor:
    """(B, T, N, H) of queries (B, T, N, H) against keys and values (B, K, S, H)."""
    mixed = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        keys,
        values,
        attn_mask=mask,
        is_causal=causal,
        dropout_p=dropout,
        enable_gqa=q.shape[2] != keys.shape[1],
    )
    return mixed.transpose(1, 2)


class _Blocked(torch.autograd.Function):
    """Explicit products, a block of queries at a time against the keys that it may see.

    Half of the T x T products is never computed, and with documents whatever lies before the
    first one of a block. The attention weights are kept for the backward pass, T^2/2 for each row
    and head: to compute them again takes a seventh product and the exponentials, and 20 % longer.
    All rows and heads of a block go through one product: smaller pieces would stay in the cache,
    but each costs a product of its own, and adding to part of a tensor with `baddbmm_` falls back
    to a loop over rows and heads.
    """

    @staticmethod
    def forward(  # (B, T, N, H), (B, T, K, H) twice, (B, T)
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, size: int, dropout: float
    ) -> Tensor:
        rows, length, heads, width = q.shape
        share = heads // k.shape[2]
        q, k, v = _fold(q, share) * width**-0.5, _fold(k), _fold(v)
        mixed, weights, masks = torch.empty_like(q), [], []
        blocks = list(_blocks(length, share, starts, size))
        for block in blocks:
            scores = torch.bmm(q[:, block.queries], k[:, block.keys].transpose(1, 2))
            block.hide(scores, share)  # (B*K, n*N/K, S)
            weights.append(torch.softmax(scores, -1))
            masks.append(kept(scores.shape, dropout) if dropout else None)
            mixed[:, block.queries] = torch.bmm(_masked(weights[-1], masks[-1]), v[:, block.keys])
        ctx.save_for_backward(q, k, v, *weights, *masks)
        ctx.rows, ctx.blocks, ctx.dropout = rows, blocks, dropout
        if dropout:
            mixed.div_(1 - dropout)  # the sums, which are fewer than the weights that were kept
        return _unfold(mixed, rows, length)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        q, k, v, *saved = ctx.saved_tensors
        weights, masks = saved[: len(ctx.blocks)], saved[len(ctx.blocks) :]
        length, scale = k.shape[1], k.shape[2] ** -0.5
        grad = _fold(grads[0], q.shape[1] // length)
        if ctx.dropout:
            grad = grad / (1 - ctx.dropout)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for block, weight, mask in zip(ctx.blocks, weights, masks, strict=True):
            x, g = q[:, block.queries], grad[:, block.queries]
            slope = _masked(torch.bmm(g, v[:, block.keys].transpose(1, 2)), mask)
            slope = torch.ops.aten._softmax_backward_data(slope, weight, -1, weight.dtype)
            dq[:, block.queries] = torch.bmm(slope, k[:, block.keys])
            dk[:, block.keys] += torch.bmm(slope.transpose(1, 2), x)
            dv[:, block.keys] += torch.bmm(_masked(weight, mask).transpose(1, 2), g)
        dq.mul_(scale)  # q was scaled on its way in, and k's gradient has that from it
        return *(_unfold(each, ctx.rows, length) for each in (dq, dk, dv)), None, None, None


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


class _Block(NamedTuple):
    """Some queries, and the keys up to the last of them."""

    queries: slice
    """Of (B*K, T*N/K, H), along its second dimension."""
    keys: slice
    """Of (B*K, T, H), along its second dimension."""
    hidden: Tensor
    """(1 or B, queries, the last keys) -inf where a query must not look, else 0."""

    def hide(self, scores: Tensor, share: int) -> None:
        """Hide what must not be seen in scores (B*K, queries*share, keys)."""
        rows, queries, keys = self.hidden.shape
        parts = scores.unflatten(1, (queries, share)).unflatten(0, (rows, -1))
        parts[..., -keys:].add_(self.hidden[:, None, :, None])


def _blocks(length: int, share: int, starts: Tensor | None, size: int) -> Iterator[_Block]:
    """Cut the T queries of every row, each `share` heads wide, into blocks of `size`."""
    ahead = torch.full((1, size, size), -math.inf).triu(1)
    for start in range(0, length, size):
        stop, first = min(start + size, length), 0
        hidden = ahead[:, : stop - start, : stop - start]
        if starts is not None:
            if not torch.compiler.is_compiling():
                # In steps, for tensors of another size at every step scatter over the heap.
                first = int(starts[:, start].min()) // STEP * STEP
            hidden = _unseen(starts, start, stop, first)
            hidden = torch.zeros(hidden.shape).masked_fill(hidden, -math.inf)
        yield _Block(slice(start * share, stop * share), slice(first, stop), hidden)


def _unseen(starts: Tensor, start: int, stop: int, first: int) -> Tensor:
    """(B, queries, keys) True where a query in start…stop must not look at a key in first…stop."""
    keys = torch.arange(first, stop, device=starts.device)
    queries = torch.arange(start, stop, device=starts.device)[:, None]
    return (keys > queries) | (keys < starts[:, start:stop, None])


def _fold(x: Tensor, share: int = 1) -> Tensor:
    """(B, T, N, H) to (B*K, T*N/K, H): the query heads that share keys side by side, so that they
    go through one product."""
    length, heads = x.shape[1] * share, x.shape[2] // share
    x = x.unflatten(2, (heads, share)).transpose(1, 2)  # (B, K, T, N/K, H)
    return x.reshape(-1, length, x.shape[-1])


def _unfold(x: Tensor, rows: int, length: int) -> Tensor:
    """The way back: (B*K, T*N/K, H) to (B, T, N, H)."""
    x = x.view(rows, -1, length, x.shape[1] // length, x.shape[2])  # (B, K, T, N/K, H)
    return x.transpose(1, 2).flatten(2, 3)
