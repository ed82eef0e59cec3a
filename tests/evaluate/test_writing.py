"""Repetition of what a model writes."""

from __future__ import annotations

import pytest
import torch

from sparrowlm.config import ModelConfig
from sparrowlm.errors import ConfigError
from sparrowlm.evaluate.answering import Subject
from sparrowlm.evaluate.repetition import distinct, repetition_rate
from sparrowlm.evaluate.writing import measure_writing
from sparrowlm.infer.engine import Engine, Request
from sparrowlm.infer.sampling import Sampling
from sparrowlm.runtime import Runtime
from sparrowlm.text.tokenizer import byte_tokenizer
from writing_support import random_model

SHAPE = ModelConfig(vocab_size=257, d_model=16, n_layers=1, n_heads=2, max_seq_len=64)


def test_the_mean_over_texts_each_written_alone() -> None:
    subject = Subject(
        random_model(SHAPE), byte_tokenizer(), Runtime(torch.device("cpu"), "float64")
    )
    sampling = Sampling(temperature=0.3, max_tokens=30)
    found = measure_writing(subject, ["a", "bc"], 5, sampling)
    engine = Engine(*subject)
    texts = []
    for number in range(5):
        ids = engine.prompt(["a", "bc"][number % 2])
        pieces = engine.stream([Request(ids, sampling, number)])
        texts.append([piece.token for piece in pieces if piece.token != 256])
    expected = {f"distinct-{n}": [distinct(text, n) for text in texts] for n in (1, 2, 3)}
    expected["repetition"] = [repetition_rate(text) for text in texts]
    expected["length"] = [len(text) for text in texts]
    for name, values in expected.items():
        assert found.figures[name].value == pytest.approx(sum(values) / 5)
    assert "5 texts, 2 prompts, up to 30 tokens, temperature 0.3" in found.how
    with pytest.raises(ConfigError, match="nothing is to be written"):
        measure_writing(subject, [], 5, sampling)
