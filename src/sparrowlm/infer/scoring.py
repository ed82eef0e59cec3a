"""What a model says of sequences that are there already: log-probabilities, and a judge's scores.

Sequences are packed into rows with as little padding as may be, and no logits are ever held whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparrowlm.data.packing import Item, packed_batches
from sparrowlm.errors import UserError
from sparrowlm.model.transformer import Transformer
from sparrowlm.objectives.reward import Reward, scores
from sparrowlm.objectives.sequences import target_logprobs_and_likeliest
from sparrowlm.runtime import Runtime

ROW, AT_ONCE = 256, 8192
"""Positions of a row of short sequences, and of a forward pass."""


class Said(NamedTuple):
    """What a model says of a sequence, one value for each id that was asked for."""

    logprobs: Tensor
    """(n,) float32 on the CPU: nats, given all ids before."""
    likeliest: Tensor
    """(n,) bool: no other id is likelier, so greedy decoding would write it."""


@torch.no_grad()
def logprobs(
    model: Transformer,
    runtime: Runtime,
    sequences: Sequence[Sequence[int]],
    first: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Said]:
    """The log-probability of every id of each sequence but its first, in order.

    A sequence has the same values alone and among others, up to rounding.

    Args:
        model: on its device, in evaluation mode.
        runtime: where; the precision is that of the products.
        sequences: of ids, each at most one longer than the model's context.
        first: of each sequence the place of the first id that is asked for, 1 or more; what
            stands before it is context. None: 1.
        progress: told how many sequences of how many are done.

    Returns:
        For each sequence `len(ids) - first` values; none where that is not above zero.

    Raises:
        UserError: a sequence is longer than that.

    >>> said = logprobs(model, runtime, [tokenizer.encode("The sparrow is small.")])
    >>> -said[0].logprobs.mean()  # nats per token
    """
    first = [1] * len(sequences) if first is None else first
    context = model.config.max_seq_len
    if (longest := max(map(len, sequences), default=0)) > context + 1:
        raise UserError(
            f"a text of {longest} tokens is longer than the model's context of {context}",
            fix="cut it into windows: sparrow evaluate RUN --data FILE does",
        )
    asked = [n for n, ids in enumerate(sequences) if len(ids) > max(1, first[n])]
    items = [_item(sequences[n], max(1, first[n])) for n in asked]
    seq_len = min(context, max([ROW, *(len(item.ids) - 1 for item in items)]))
    found = [Said(torch.empty(0), torch.empty(0, dtype=torch.bool))] * len(sequences)
    done = len(sequences) - len(asked)
    for chosen, batch in packed_batches(items, seq_len, max(1, AT_ONCE // seq_len)):
        batch = batch.to(runtime.device)
        with runtime.autocast():
            hidden = model(batch.tokens, batch.segments).hidden
            values = target_logprobs_and_likeliest(model, hidden, batch)
        nats, likeliest = values[0].float().cpu(), values[1].cpu()
        for row, n, place in _places(chosen, items):
            begin = place.start + max(1, first[asked[n]]) - 1
            found[asked[n]] = Said(
                nats[row, begin : place.stop].clone(), likeliest[row, begin : place.stop].clone()
            )
        done += sum(map(len, chosen))
        if progress is not None:
            progress(done, len(sequences))
    return found


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
    items = [_item(ids, 0) for ids in sequences]
    found = [0.0] * len(items)
    for chosen, batch in packed_batches(items, model.config.max_seq_len, rows):
        batch = batch.to(runtime.device)
        with runtime.autocast():
            hidden = model(batch.tokens, batch.segments).hidden
            said = scores(judge.head, hidden, batch.segments).float().cpu()
        for row, values in zip(chosen, said.tolist(), strict=True):
            for n, value in zip(row, values, strict=False):
                found[n] = value
    return found


def _item(ids: Sequence[int], first: int) -> Item:
    """A sequence of which the ids from `first` on count."""
    return Item(np.array(ids), np.arange(len(ids)) >= first, {})


def _places(chosen: list[list[int]], items: Sequence[Item]) -> Iterator[tuple[int, int, slice]]:
    """(row, item, its positions in that row) of everything in a packed batch."""
    for row, numbers in enumerate(chosen):
        start = 0
        for n in numbers:
            stop = start + len(items[n].ids) - 1
            yield row, n, slice(start, stop)
            start = stop
