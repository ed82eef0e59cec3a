"""Sums of nats, targets and bytes, against a plain recomputation in Python."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sparrowlm.evaluate.likelihood as likelihood
from sparrowlm.batch import Batch, Loss, Objective
from sparrowlm.config import ModelConfig, resolve_model
from sparrowlm.data.shards import Tokens
from sparrowlm.data.streams import windows
from sparrowlm.evaluate.likelihood import evaluate
from sparrowlm.model.transformer import Transformer
from sparrowlm.objectives.next_token import NextToken
from sparrowlm.runtime import Runtime

VOCABULARY = 11
CPU = Runtime(torch.device("cpu"), "float64")


class Table(nn.Module):
    """Logits looked up by the current token, with dropout, so that the mode matters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Parameter(torch.randn(VOCABULARY, VOCABULARY, dtype=torch.float64))
        self.passes = 0

    def forward(self, tokens: Tensor) -> Tensor:
        self.passes += 1
        return nn.functional.dropout(self.table[tokens], 0.5, self.training)


class Nats(Objective):
    """Next-token loss without any chunking; an id is as many bytes long as its number says."""

    def forward(self, model: nn.Module, batch: Batch) -> Loss:
        nats = nn.functional.cross_entropy(
            model(batch.tokens).flatten(0, 1), batch.targets.flatten(), reduction="none"
        )
        total = (nats * batch.mask.flatten()).sum()
        size = (batch.targets * batch.mask).sum()
        return Loss(
            total,
            {
                "loss": torch.stack([total.detach(), batch.mask.sum()]),
                "bits_per_byte": torch.stack([total.detach() / math.log(2), size]),
            },
        )


def _batch(rows: int, seed: int, masked: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (rows, 9), generator=generator)
    mask = torch.ones(rows, 8, dtype=torch.bool)
    mask[-1, 8 - masked :] = False
    return Batch(tokens[:, :-1], tokens[:, 1:], mask, None, {})


def test_uneven_batches_give_sums_and_never_averages_of_averages() -> None:
    model, batches = Table(), [_batch(4, 0, 0), _batch(1, 1, 6)]
    found = evaluate(Nats(), model, batches, CPU)
    chances = model.table.detach().log_softmax(-1)
    nats, count, size = 0.0, 0, 0
    for batch in batches:
        columns = (batch.tokens, batch.targets, batch.mask)
        for token, target, counts in zip(*(c.flatten().tolist() for c in columns), strict=True):
            if counts:
                nats -= chances[token, target].item()
                count += 1
                size += target
    assert found["loss"] == (pytest.approx(nats, rel=1e-12), count)
    assert found["bits_per_byte"] == (pytest.approx(nats / math.log(2), rel=1e-12), size)
    assert count == 34


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_share_a_split_and_add_up_to_the_whole(
    world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # all_sum of one process returns what it is given, so here the ranks are added up by hand.
    monkeypatch.setattr(likelihood, "all_sum", lambda tensor: tensor)
    batches = [_batch(2, seed, seed) for seed in range(5)]
    whole = evaluate(Nats(), Table(), batches, CPU)
    models = [Table() for _ in range(world_size)]
    parts = [
        evaluate(Nats(), model, iter(batches), Runtime(CPU.device, "float64", rank, world_size))
        for rank, model in enumerate(models)
    ]
    for name, (total, count) in whole.items():
        assert sum(part[name][0] for part in parts) == pytest.approx(total, rel=1e-14)
        assert sum(part[name][1] for part in parts) == count
    # A sharded model needs all ranks in every pass.
    assert {model.passes for model in models} == {math.ceil(5 / world_size)}


def test_nothing_measured_is_no_number() -> None:
    assert evaluate(Nats(), Table(), [], CPU) == {}


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_turns_dropout_off_and_leaves_the_mode_and_gradients_alone(
    training: bool,
) -> None:
    model = Table().train(training)
    first = evaluate(Nats(), model, [_batch(3, 0, 0)], CPU)
    assert first == evaluate(Nats(), model, [_batch(3, 0, 0)], CPU)
    assert model.training is training
    assert model.table.grad is None
    assert torch.is_grad_enabled()


def test_the_mode_comes_back_after_a_fault() -> None:
    model = Table().train()
    broken = _batch(2, 0, 0)._replace(targets=torch.full((2, 8), VOCABULARY))
    with pytest.raises(IndexError):
        evaluate(Nats(), model, [broken], CPU)
    assert model.training


def test_the_sums_of_a_real_split_against_its_windows_one_by_one(tmp_path: Path) -> None:
    """Through the real stream (the last window is padded), model and objective."""
    config = resolve_model(ModelConfig(vocab_size=31, d_model=16, n_layers=1, n_heads=2))
    model = Transformer(config).double()
    model.init_weights(0)
    ids = torch.randint(31, (100,), generator=torch.Generator().manual_seed(0))
    (tmp_path / "val.bin").write_bytes(ids.numpy().astype("<u2").tobytes())
    split = Tokens([tmp_path / "val.bin"], "uint16", 31)
    lengths = torch.arange(31)
    found = evaluate(NextToken(lengths), model, windows(split, seq_len=40, rows=2), CPU)
    nats = 0.0
    for start in (0, 40, 80):
        tokens, targets = ids[start : start + 40][: 99 - start], ids[start + 1 : start + 41]
        with torch.no_grad():
            logits = model.logits(model(tokens[None]).hidden)[0]
        nats += nn.functional.cross_entropy(logits, targets, reduction="sum").item()
    assert found["loss"] == (pytest.approx(nats, rel=1e-12), 99)
    size = int(lengths[ids[1:]].sum())
    assert found["bits_per_byte"] == (pytest.approx(nats / math.log(2), rel=1e-12), size)
