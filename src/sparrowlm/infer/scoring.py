"""A reward model's scores of sequences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sparrowlm.data.packing import Item, best_fit, packed_batch
from sparrowlm.model.transformer import Transformer
from sparrowlm.objectives.reward import Reward, scores
from sparrowlm.runtime import Runtime


@torch.no_grad()
def scores_of(
    judge: Reward,
    model: Transformer,
    runtime: Runtime,
    rows: int,
    sequences: Sequence[Sequence[int]],
) -> list[float]:
    """The score of each sequence of ids, prompt and completion, in order.

    Args:
        judge: of `model`, on its device.
        model: frozen.
        runtime: where.
        rows: of a forward pass.
        sequences: each of at least two ids and at most one more than the model's context.
    """
    seq_len = model.config.max_seq_len
    items = [Item(np.array(ids), np.ones(len(ids), bool), {}) for ids in sequences]
    packed = best_fit([len(item.ids) - 1 for item in items], seq_len)
    found = [0.0] * len(items)
    for start in range(0, len(packed), rows):
        chosen = packed[start : start + rows]
        batch = packed_batch([[(items[n],) for n in row] for row in chosen], seq_len)
        batch = batch.to(runtime.device)
        with runtime.autocast():
            hidden = model(batch.tokens, batch.segments).hidden
            said = scores(judge.head, hidden, batch.segments).float().cpu()
        for row, values in zip(chosen, said.tolist(), strict=True):
            for n, value in zip(row, values, strict=False):
                found[n] = value
    return found
