"""A model that has learned something."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from sparrowlm.batch import Batch
from sparrowlm.config import ModelConfig, resolve_model
from sparrowlm.model.transformer import Transformer
from sparrowlm.objectives.next_token import NextToken


@pytest.fixture(scope="session")
def source() -> bytes:
    """Real text: a module of the standard library."""
    return Path(argparse.__file__).read_bytes()


@pytest.fixture(scope="session")
def trained(source: bytes) -> Transformer:
    """A small model of bytes, trained on real text for a few seconds. Its table has some rows
    more than the 257 of `byte_tokenizer`."""
    context = 64
    shape = ModelConfig(
        vocab_size=264, d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, max_seq_len=context
    )
    model = Transformer(resolve_model(shape))
    model.init_weights(0)
    ids = torch.tensor(list(source))
    objective = NextToken()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(8, context, dtype=torch.bool)
    loss = torch.tensor(0.0)
    for _ in range(60):
        starts = torch.randint(len(ids) - context - 1, (8, 1), generator=generator)
        rows = ids[starts + torch.arange(context + 1)]
        loss = objective(model, Batch(rows[:, :-1], rows[:, 1:], mask, None, {})).total / mask.sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 3.0  # before training it is 5.6
    return model.eval()
