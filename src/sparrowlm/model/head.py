"""The vocabulary, a chunk of rows at a time.

The logits of a batch are its largest tensor by far: 4,096 rows over 6,400 entries take 105 MB in
float32, over 50,257 entries 823 MB, and their gradient as much again. Nothing here holds more
than `chunk_rows` rows of them. N rows, D the model's width, V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 32 << 20


def chunk_rows(vocab_size: int) -> int:
    """How many rows of float32 logits fit `CHUNK_BYTES`, at least 16."""
    return max(16, CHUNK_BYTES // (4 * vocab_size))


def over_vocab(
    hidden: Tensor, weight: Tensor, targets: Tensor, fn: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """`fn` of the logits, in bounded memory; the backward pass computes the logits again.

    Args:
        hidden: (N, D).
        weight: (V, D).
        targets: (N,) int64.
        fn: of logits (n, V), float32 or wider, and targets (n,), to (n, ...).

    Returns:
        (N, ...) what `fn` returned, row after row.
    """

    def chunk(rows: Tensor, wanted: Tensor) -> Tensor:
        return fn(_wide(F.linear(rows, weight)), wanted)

    size = chunk_rows(weight.shape[0])
    parts = zip(hidden.split(size), targets.split(size), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([chunk(*part) for part in parts])
    return torch.cat([checkpoint(chunk, *part, use_reentrant=False) for part in parts])


def next_token_nll(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """(N,) the nats of each target."""
    return over_vocab(hidden, weight, targets, _nll)


def summed_nll(hidden: Tensor, weight: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """() the nats of the targets where `mask` (N,) is True."""
    return torch.where(mask, next_token_nll(hidden, weight, targets), 0.0).sum()


def _nll(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="none")


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
