"""Sums of nats, targets and bytes, against closed forms and a plain recomputation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from sparrowlm.batch import Batch, Loss, Objective
from sparrowlm.evaluate.likelihood import Likelihood, evaluate
from sparrowlm.runtime import Runtime

VOCABULARY = 11
CPU = Runtime(torch.device("cpu"), "float64")


class Table(nn.Module):
    """Logits looked up by the current token, with dropout, so that the mode matters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Parameter(torch.randn(VOCABULARY, VOCABULARY, dtype=torch.float64))

    def forward(self, tokens: Tensor) -> Tensor:
        return nn.functional.dropout(self.table[tokens], 0.5, self.training)


class Nats(Objective):
    """Next-token loss without any chunking."""

    def forward(self, model: nn.Module, batch: Batch) -> Loss:
        nats = nn.functional.cross_entropy(
            model(batch.tokens).flatten(0, 1), batch.targets.flatten(), reduction="none"
        )
        total = (nats * batch.mask.flatten()).sum()
        return Loss(total, {"loss": torch.stack([total.detach(), batch.mask.sum()])})


def _batch(rows: int, seed: int, masked: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (rows, 9), generator=generator)
    mask = torch.ones(rows, 8, dtype=torch.bool)
    mask[-1, 8 - masked :] = False
    return Batch(tokens[:, :-1], tokens[:, 1:], mask, None, {})


def test_the_example_two_coin_flips_over_eight_bytes_are_a_quarter_bit_each() -> None:
    assert Likelihood(2 * math.log(2), 2, 8).bits_per_byte == 0.25


def test_uneven_batches_give_sums_and_never_averages_of_averages() -> None:
    model, batches = Table(), [_batch(4, 0, 0), _batch(1, 1, 6)]
    lengths = torch.arange(VOCABULARY)
    found = evaluate(Nats(), model, batches, lengths, CPU)
    nats, count, size = 0.0, 0, 0
    for batch in batches:
        chances = model.table.detach().log_softmax(-1)
        for token, target, counts in zip(
            batch.tokens.flatten().tolist(),
            batch.targets.flatten().tolist(),
            batch.mask.flatten().tolist(),
            strict=True,
        ):
            if counts:
                nats -= chances[token, target].item()
                count += 1
                size += target
    assert found.count == count == 34
    assert found.bytes_sum == size
    assert found.nats_sum == pytest.approx(nats, rel=1e-12)
    assert found.loss == pytest.approx(nats / count, rel=1e-12)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-12)


def test_a_split_shared_by_two_ranks_adds_up_to_the_whole() -> None:
    model, batches = Table(), [_batch(2, seed, seed) for seed in range(5)]
    lengths = torch.ones(VOCABULARY, dtype=torch.int32)
    whole = evaluate(Nats(), model, batches, lengths, CPU)
    halves = [evaluate(Nats(), model, part, lengths, CPU) for part in (batches[:2], batches[2:])]
    together = Likelihood(*(a + b for a, b in zip(*halves, strict=True)))
    assert together.nats_sum == pytest.approx(whole.nats_sum, rel=1e-14)
    assert together[1:] == whole[1:]


def test_bits_per_byte_is_null_without_a_tokenizer() -> None:
    found = evaluate(Nats(), Table(), [_batch(2, 0, 0)], None, CPU)
    assert found.bits_per_byte is None
    assert found.loss > 0


def test_nothing_measured_is_no_number() -> None:
    found = evaluate(Nats(), Table(), [], None, CPU)
    assert found.count == 0
    assert math.isnan(found.loss)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_turns_dropout_off_and_leaves_the_mode_and_gradients_alone(
    training: bool,
) -> None:
    model = Table().train(training)
    first = evaluate(Nats(), model, [_batch(3, 0, 0)], None, CPU)
    second = evaluate(Nats(), model, [_batch(3, 0, 0)], None, CPU)
    assert first == second
    assert model.training is training
    assert model.table.grad is None
    assert torch.is_grad_enabled()


def test_the_mode_comes_back_after_a_fault() -> None:
    model = Table().train()
    broken = _batch(2, 0, 0)._replace(targets=torch.full((2, 8), VOCABULARY))
    with pytest.raises(IndexError):
        evaluate(Nats(), model, [broken], None, CPU)
    assert model.training
