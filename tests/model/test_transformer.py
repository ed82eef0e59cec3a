"""The Transformer's laws: initialization, packing, caching, dropout, checkpointing, compiling."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparrowlm.batch import Batch
from sparrowlm.config import ModelConfig, resolve_model
from sparrowlm.errors import UserError
from sparrowlm.model.cache import KVCache
from sparrowlm.model.dropout import dropout
from sparrowlm.model.transformer import Transformer, document_starts
from sparrowlm.objectives.next_token import NextToken

SMALL = ModelConfig(vocab_size=97, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, max_seq_len=24)
GPT2 = replace(
    SMALL,
    norm="layer",
    positions="learned",
    mlp="gelu_tanh",
    n_kv_heads=0,
    qk_norm=False,
    bias=True,
)
MOE = replace(SMALL, n_experts=4, d_ff=32)
shapes = pytest.mark.parametrize("config", [SMALL, GPT2, MOE], ids=["qwen3", "gpt2", "moe"])


def make(config: ModelConfig, dtype: torch.dtype = torch.float64, **settings: bool) -> Transformer:
    model = Transformer(resolve_model(config), **settings)
    model.init_weights(seed=7)
    return model.to(dtype).eval()


def draw(rows: int, length: int, vocab_size: int = 97) -> Tensor:
    return torch.randint(0, vocab_size, (rows, length), generator=torch.Generator().manual_seed(2))


def first_loss(model: Transformer) -> float:
    tokens = draw(4, 129, model.config.vocab_size)
    with torch.no_grad():
        logits = model.logits(model(tokens[:, :-1]).hidden)
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item()


@pytest.mark.parametrize(
    ("width", "tied"),
    [
        (128, True),
        (512, True),
        (768, True),
        pytest.param(2048, True, marks=pytest.mark.slow),
        (512, False),
    ],
)
def test_first_loss_is_the_logarithm_of_the_vocabulary(width: int, tied: bool) -> None:
    config = ModelConfig(
        vocab_size=6400, d_model=width, n_layers=2, n_heads=width // 64, tie_embeddings=tied
    )
    assert abs(first_loss(make(config, torch.float32)) - math.log(6400)) < 0.1


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("vocab_size", [65, 50257])
def test_first_loss_at_other_vocabularies(vocab_size: int, norm) -> None:
    config = ModelConfig(vocab_size=vocab_size, d_model=128, n_layers=4, norm=norm)
    assert abs(first_loss(make(config, torch.float32)) - math.log(vocab_size)) < 0.1


def test_every_variant_initializes_every_parameter() -> None:
    choices = itertools.product(
        ["rms", "layer"],
        ["rope", "learned"],
        ["swiglu", "reglu", "gelu", "gelu_tanh", "relu", "relu2"],
        [False, True],
        [False, True],
    )
    for norm, positions, mlp, bias, tied in choices:
        config = replace(
            SMALL,
            norm=norm,
            positions=positions,
            mlp=mlp,
            bias=bias,
            tie_embeddings=tied,
            head_bias=bias and not tied,
        )
        config = replace(config, n_experts=0 if bias else 3)
        model = Transformer(resolve_model(config))
        for parameter in model.parameters():
            parameter.data.fill_(math.nan)
        model.init_weights(seed=1)
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        assert model.double()(draw(2, 8)).hidden.isfinite().all()


def test_a_parameter_without_a_rule_is_an_error() -> None:
    model = Transformer(resolve_model(SMALL))
    model.extra = nn.Linear(4, 4)
    with pytest.raises(RuntimeError, match=r"extra\.weight"):
        model.init_weights(seed=1)


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(0)
    first = make(SMALL, torch.float32)
    torch.manual_seed(99)
    again, other = make(SMALL, torch.float32), Transformer(resolve_model(SMALL))
    other.init_weights(seed=8)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not torch.equal(first.embed.weight, other.embed.weight)


def test_spread_of_the_weights() -> None:
    model = make(replace(SMALL, d_model=512, vocab_size=2000, tie_embeddings=False), torch.float32)
    assert model.head_weight.std().item() == pytest.approx(0.3 / math.sqrt(512), rel=0.02)
    assert model.blocks[0].attention.q.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.blocks[1].mlp.down.weight.std().item() == pytest.approx(0.01, rel=0.02)


@shapes
@pytest.mark.parametrize("splits", [(24,), (1,) * 24, (7, 1, 1, 9, 6)])
def test_cached_decoding_equals_the_full_pass(config, splits) -> None:
    model, tokens = make(config), draw(3, 24)
    cache = KVCache(model.config, slots=3, max_len=24, dtype=torch.float64)
    with torch.no_grad():
        full = model.logits(model(tokens).hidden)
        parts = [model(part, cache=cache).hidden for part in tokens.split(splits, dim=1)]
    torch.testing.assert_close(model.logits(torch.cat(parts, 1)), full, atol=1e-10, rtol=0)
    assert cache.lengths.tolist() == [24] * 3


@shapes
def test_padded_rows_of_different_lengths_equal_the_full_pass(config) -> None:
    model, tokens = make(config), draw(3, 24)
    cache = KVCache(model.config, slots=3, max_len=24, dtype=torch.float64)
    counts, extra = [3, 9, 5], [4, 1, 2]
    ends = [count + more for count, more in zip(counts, extra, strict=True)]
    with torch.no_grad():
        full = model(tokens).hidden
        padded = model(tokens[:, :9], cache=cache, counts=counts).hidden
        middle = torch.stack([tokens[row, counts[row] : counts[row] + 4] for row in range(3)])
        second = model(middle, cache=cache, counts=extra).hidden
        last = torch.stack([tokens[row, ends[row]] for row in range(3)])[:, None]
        third = model(last, cache=cache).hidden
    for row in range(3):
        pairs = [
            (padded[row, : counts[row]], full[row, : counts[row]]),
            (second[row, : extra[row]], full[row, counts[row] : ends[row]]),
            (third[row], full[row, ends[row] : ends[row] + 1]),
        ]
        for got, want in pairs:
            torch.testing.assert_close(got, want, atol=1e-10, rtol=0)
    assert cache.lengths.tolist() == [end + 1 for end in ends]


def test_slots_fill_alone_and_continue_copied() -> None:
    model, tokens = make(SMALL), draw(2, 12)
    cache = KVCache(model.config, slots=3, max_len=24, dtype=torch.float64)
    with torch.no_grad():
        model(tokens[:1, :5], cache=cache.rows(0, 1))
        model(tokens[1:, :8], cache=cache.rows(1, 2))
        cache.copy(1, 2, 8)
        assert cache.lengths.tolist() == [5, 8, 8]
        new = torch.stack([tokens[0, 5], tokens[1, 8], tokens[1, 8]])[:, None]
        got, full = model(new, cache=cache).hidden[:, 0], model(tokens).hidden
    torch.testing.assert_close(
        got, torch.stack([full[0, 5], full[1, 8], full[1, 8]]), atol=1e-10, rtol=0
    )
    cache.cut(1)
    assert cache.lengths.tolist() == [6, 0, 9]
    assert cache.room == 15


def test_a_full_cache_says_so_and_keeps_its_lengths() -> None:
    model = make(SMALL)
    cache = KVCache(model.config, slots=1, max_len=4, dtype=torch.float64)
    model(draw(1, 4), cache=cache)
    with pytest.raises(UserError, match="does not fit the cache"):
        model(draw(1, 1), cache=cache)
    assert cache.lengths.tolist() == [4]


def test_too_many_positions_name_the_setting() -> None:
    with pytest.raises(UserError, match=r"model\.max_seq_len"):
        make(SMALL)(draw(1, 25))


def test_segments_and_cache_together_are_refused() -> None:
    model = make(SMALL)
    cache = KVCache(model.config, slots=1, max_len=4, dtype=torch.float64)
    with pytest.raises(ValueError, match="give one of them"):
        model(draw(1, 2), segments=torch.zeros(1, 2), cache=cache)


def test_document_starts() -> None:
    segments = torch.tensor([[7, 7, 2, 2, 2, -1], [0, 1, 1, 0, 0, 0]], dtype=torch.int32)
    assert document_starts(segments).tolist() == [[0, 0, 2, 2, 2, 5], [0, 1, 1, 3, 3, 3]]


@shapes
def test_packed_documents_equal_each_alone(config) -> None:
    model, tokens = make(config), draw(2, 20)
    lengths = [[6, 9, 5], [1, 15, 4]]
    segments = torch.stack(
        [torch.repeat_interleave(torch.tensor([4, 5, -1]), torch.tensor(row)) for row in lengths]
    ).int()
    with torch.no_grad():
        packed = model(tokens, segments).hidden
        for row, sizes in enumerate(lengths):
            parts = tokens[row].split(sizes)
            alone = torch.cat([model(part[None]).hidden[0] for part in parts])
            torch.testing.assert_close(packed[row], alone, atol=1e-10, rtol=0)


def test_dropout_acts_in_training_alone() -> None:
    model, tokens = make(replace(SMALL, dropout=0.2)), draw(2, 20)
    assert torch.equal(model(tokens).hidden, model(tokens).hidden)
    model.train()
    torch.manual_seed(0)
    first, second = model(tokens).hidden, model(tokens).hidden
    torch.manual_seed(0)
    assert torch.equal(first, model(tokens).hidden)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("shape", [SMALL, MOE], ids=["qwen3", "moe"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_checkpointing_changes_no_gradient(shape: ModelConfig, dropout: float) -> None:
    tokens, config = draw(2, 20), replace(shape, dropout=dropout)
    slopes = []
    for checkpointing in (False, True):
        model = make(config, activation_checkpointing=checkpointing).train()
        torch.manual_seed(0)
        model(tokens).hidden.square().sum().backward()
        slopes.append([parameter.grad for parameter in model.parameters()])
    for plain, again in zip(*slopes, strict=True):
        torch.testing.assert_close(plain, again, atol=1e-12, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "length"), [(SMALL, 256), (GPT2, 16)], ids=["qwen3-blocks", "gpt2-fused"]
)
def test_compiles_without_a_graph_break(config, length: int) -> None:
    """Model and head as one graph, as the trainer compiles them."""
    config = replace(config, n_layers=1, max_seq_len=256)
    model, tokens = make(config, torch.float32).train(), draw(2, length + 1)
    mask = torch.ones(2, length, dtype=torch.bool)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], mask, None, {})

    def total(batch: Batch) -> Tensor:
        return NextToken()(model, batch).total

    want = total(batch)
    slopes = torch.autograd.grad(want, list(model.parameters()))
    got = torch.compile(total, fullgraph=True, dynamic=False)(batch)
    torch.testing.assert_close(got, want, atol=0, rtol=1e-5)
    pairs = zip(torch.autograd.grad(got, list(model.parameters())), slopes, strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_dropout_compiles_without_a_graph_break() -> None:
    model = make(replace(SMALL, n_layers=1, dropout=0.2), torch.float32).train()
    tokens = draw(2, model.config.max_seq_len)
    compiled = torch.compile(lambda: model(tokens).hidden, fullgraph=True, dynamic=False)
    (slope,) = torch.autograd.grad(compiled().square().mean(), [model.embed.weight])
    assert slope.isfinite().all()
    assert slope.abs().max() > 0
    assert not torch.equal(compiled(), compiled())
    dropped = torch.compile(lambda x: dropout(x, 0.2, training=True), fullgraph=True)
    x = torch.rand(300, 400).add_(1).requires_grad_()
    out = dropped(x)
    mask = out != 0
    assert mask.double().mean().item() == pytest.approx(0.8, abs=0.006)
    torch.testing.assert_close(out[mask], x[mask] / 0.8, atol=0, rtol=1e-4)
    (slope,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(slope, mask * 1.25, atol=0, rtol=1e-4)
