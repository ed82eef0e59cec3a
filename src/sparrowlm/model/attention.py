"""Causal attention, by the fastest way that the device has.

Shapes: B rows, T query positions, S key positions, N query heads, K key-value heads (N is a
multiple of K, and each serves N/K neighbors), H the width of a head.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, *, documents: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Every position attends to itself and to what precedes it.

    Args:
        q: (B, T, N, H).
        k: (B, T, K, H).
        v: (B, T, K, H).
        documents: (B, T) the number of a position's document; nobody looks into another one.
        dropout: probability that an attention weight is zeroed.

    Returns:
        (B, T, N, H)
    """
    mask = None
    if documents is not None:
        same = documents[:, None, :, None] == documents[:, None, None, :]
        mask = same.tril()  # (B, 1, T, T)
    return _product(q, k.transpose(1, 2), v.transpose(1, 2), mask, mask is None, dropout)


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
    return _product(q, keys, values, mask, mask is None, 0.0)


def _product(
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
