"""Log-probabilities of sequences, against passes over each alone."""

from __future__ import annotations

import pytest
import torch

from sparrowlm.config import ModelConfig
from sparrowlm.errors import UserError
from sparrowlm.infer.scoring import logprobs
from sparrowlm.runtime import Runtime
from writing_support import full_logits, random_model

CPU = Runtime(torch.device("cpu"), "float64")
SHAPE = ModelConfig(vocab_size=31, d_model=16, n_layers=2, n_heads=2, max_seq_len=24)


def sequences(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(31, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.parametrize("experts", [0, 4])
def test_among_others_against_a_pass_over_each_alone(experts: int) -> None:
    model = random_model(ModelConfig(**vars(SHAPE) | {"n_experts": experts}))
    asked = sequences(25, 2, 7, 1, 0, 13, 13, 24, 3)
    found = logprobs(model, CPU, asked)
    for ids, said in zip(asked, found, strict=True):
        assert len(said.logprobs) == len(said.likeliest) == max(0, len(ids) - 1)
        if len(ids) < 2:
            continue
        logits = full_logits(model, ids[:-1]).log_softmax(-1)
        targets = torch.tensor(ids[1:])
        expected = logits.gather(-1, targets[:, None])[:, 0].float()
        torch.testing.assert_close(said.logprobs, expected, atol=1e-6, rtol=1e-6)
        assert said.likeliest.tolist() == (logits.argmax(-1) == targets).tolist()


def test_only_what_is_asked_for() -> None:
    model = random_model(SHAPE)
    [ids] = sequences(20)
    [whole] = logprobs(model, CPU, [ids])
    tails = logprobs(model, CPU, [ids] * 4, first=[0, 1, 15, 20])
    assert [len(said.logprobs) for said in tails] == [19, 19, 5, 0]
    assert torch.equal(tails[2].logprobs, whole.logprobs[14:])
    assert torch.equal(tails[2].likeliest, whole.likeliest[14:])


def test_what_greedy_decoding_writes_is_likeliest() -> None:
    model = random_model(SHAPE)
    [ids] = sequences(4)
    while len(ids) < 20:
        ids.append(int(full_logits(model, ids)[-1].argmax()))
    [said] = logprobs(model, CPU, [ids], first=[4])
    assert said.likeliest.all()


def test_how_far_it_is() -> None:
    told: list[tuple[int, int]] = []
    asked = sequences(9, 1, 12)
    logprobs(random_model(SHAPE), CPU, asked, progress=lambda *at: told.append(at))
    assert told[-1] == (3, 3)


def test_longer_than_the_context_is_refused() -> None:
    with pytest.raises(UserError, match="26 tokens is longer than the model's context of 24"):
        logprobs(random_model(SHAPE), CPU, sequences(26))
