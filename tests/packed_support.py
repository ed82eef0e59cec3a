"""Small packed batches, and a model to put them through."""

from __future__ import annotations

import numpy as np
import torch

from sparrowlm.batch import Batch
from sparrowlm.config import ModelConfig, resolve_model
from sparrowlm.data.packing import Bundle, Item, packed_batch
from sparrowlm.model.transformer import Transformer

VOCABULARY = 61
CONFIG = ModelConfig(
    vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, max_seq_len=64
)


def make(seed: int = 3, **changes: object) -> Transformer:
    """A float64 model whose weights are large enough for its answers to differ."""
    from dataclasses import replace

    model = Transformer(resolve_model(replace(CONFIG, **changes)))  # pyright: ignore[reportArgumentType]
    model.init_weights(seed=seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model.double()


def item(seed: int, prompt: int, answer: int, **columns: object) -> Item:
    """A prompt and an answer of random ids; a column is a number, or drawn from N(0, 1) where it
    is None."""
    draw, size = np.random.default_rng(seed), prompt + answer
    ids = draw.integers(0, VOCABULARY, size)
    mask = np.arange(size) >= prompt
    values = {
        name: np.full(size, value, np.float32)
        if value is not None
        else draw.standard_normal(size).astype(np.float32)
        for name, value in columns.items()
    }
    return Item(ids, mask, values)


def rows_of(sizes: list[list[list[tuple[int, int]]]], **columns: object) -> list[list[Bundle]]:
    """Bundles of each row, of (prompt, answer) sizes."""
    seeds = iter(range(1000))
    return [
        [tuple(item(next(seeds), *size, **columns) for size in bundle) for bundle in row]
        for row in sizes
    ]


PAIRS = [[[(3, 4), (3, 6)], [(5, 2), (5, 3)]], [[(2, 9), (2, 5)]], []]
"""Three rows of pairs; the last is padding alone."""


def pairs(**columns: object) -> Batch:
    """A batch of `PAIRS`."""
    return packed_batch(rows_of(PAIRS, **columns), 32)


def alone(model: Transformer, one: Item) -> torch.Tensor:
    """(n,) the log-probability of each id to be learned of a sequence by itself, from the whole
    table of logits: the plain way."""
    tokens = torch.from_numpy(one.ids[:-1])[None]
    logs = model.logits(model(tokens).hidden)[0].log_softmax(-1)
    chosen = logs.gather(1, torch.from_numpy(one.ids[1:])[:, None])[:, 0]
    return chosen[torch.from_numpy(one.mask[1:])]


def gradients(total: torch.Tensor, model: torch.nn.Module) -> list[torch.Tensor]:
    """Of a loss, in all of a model's parameters."""
    return list(torch.autograd.grad(total, list(model.parameters()), retain_graph=True))
