"""The objective of pretraining."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F

from sparrowlm.batch import Batch
from sparrowlm.config import ModelConfig, resolve_model
from sparrowlm.model.transformer import Transformer
from sparrowlm.objectives.next_token import NextToken
from sparrowlm.optim.groups import split_parameters

CONFIG = ModelConfig(
    vocab_size=61, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, max_seq_len=320
)


def make() -> Transformer:
    model = Transformer(resolve_model(CONFIG))
    model.init_weights(seed=3)
    return model.double()


def batch_of(rows: torch.Tensor, segments: torch.Tensor | None = None) -> Batch:
    mask = torch.ones_like(rows[:, 1:], dtype=torch.bool)
    return Batch(rows[:, :-1], rows[:, 1:], mask, segments, {})


def draw(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, 61, (rows, length), generator=torch.Generator().manual_seed(4))


def test_loss_against_cross_entropy_with_gradients() -> None:
    model, batch = make(), batch_of(draw(3, 17))
    mask = torch.rand(batch.mask.shape, generator=torch.Generator().manual_seed(0)) > 0.4
    batch = batch._replace(mask=mask)
    loss = NextToken()(model, batch)
    logits = model.logits(model(batch.tokens).hidden)
    want = F.cross_entropy(logits[mask], batch.targets[mask], reduction="sum")
    torch.testing.assert_close(loss.total, want, atol=0, rtol=1e-12)
    assert NextToken().count(batch) == mask.sum()
    assert loss.metrics["loss"].tolist() == [loss.total.item(), mask.sum().item()]
    assert not loss.metrics["loss"].requires_grad
    parameters = list(model.parameters())
    pairs = zip(
        torch.autograd.grad(loss.total, parameters),
        torch.autograd.grad(want, parameters),
        strict=True,
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


def test_packed_loss_equals_the_documents_alone() -> None:
    """Over a row long enough for attention in blocks, and with its gradients."""
    model, lengths, rows = make(), [41, 150, 3, 106], draw(1, 301)
    segments = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[None].int()
    packed = NextToken()(model, batch_of(rows, segments)).total
    alone, start = torch.zeros((), dtype=torch.float64), 0
    for length in lengths:
        alone = alone + NextToken()(model, batch_of(rows[:, start : start + length + 1])).total
        start += length
    torch.testing.assert_close(packed, alone, atol=0, rtol=1e-10)
    parameters = list(model.parameters())
    pairs = zip(
        torch.autograd.grad(packed, parameters), torch.autograd.grad(alone, parameters), strict=True
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


def test_bits_per_byte_are_nats_over_the_bytes_of_the_targets() -> None:
    model, batch = make(), batch_of(draw(2, 9))
    lengths = torch.arange(61) % 4
    loss = NextToken(lengths)(model, batch)
    bits, size = loss.metrics["bits_per_byte"].tolist()
    assert math.isclose(bits, loss.total.item() / math.log(2))
    assert size == lengths[batch.targets].sum()


def test_a_bias_of_the_head_is_trained_like_any_vector() -> None:
    config = replace(CONFIG, tie_embeddings=False, head_bias=True)
    model = Transformer(resolve_model(config)).double()
    model.init_weights(seed=3)
    torch.nn.init.normal_(model.head.bias, generator=torch.Generator().manual_seed(2))
    batch = batch_of(draw(3, 17))
    loss = NextToken()(model, batch).total
    want = F.cross_entropy(
        model.logits(model(batch.tokens).hidden)[batch.mask],
        batch.targets[batch.mask],
        reduction="sum",
    )
    torch.testing.assert_close(loss, want, atol=0, rtol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(loss, model.head.bias), torch.autograd.grad(want, model.head.bias)
    )
    assert "head.bias" in split_parameters(model)["vectors"]
