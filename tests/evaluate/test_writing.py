"""Repetition of what a model writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sparrowlm.config import ModelConfig
from sparrowlm.data.shards import Tokens
from sparrowlm.errors import ConfigError
from sparrowlm.evaluate.answering import Subject
from sparrowlm.evaluate.repetition import distinct, repetition_rate
from sparrowlm.evaluate.writing import measure_text, measure_writing
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


def test_a_text_is_measured_in_pieces_from_its_first_token_to_its_last(tmp_path: Path) -> None:
    ids = np.array([0, 1] * 6 + [2, 3, 4, 5, 6, 7, 8, 9], dtype="<u2")
    (tmp_path / "val.bin").write_bytes(ids.tobytes())
    found = measure_text(Tokens([tmp_path / "val.bin"], "uint16", 10), 2, 8)
    expected = {f"distinct-{n}": ([2, 2, 2][n - 1] / (9 - n) + 1) / 2 for n in (1, 2, 3)}
    for name, value in (expected | {"repetition": 3 / 5 / 2, "length": 8}).items():
        assert found.figures[name].value == pytest.approx(value), name
    assert found.how == "2 pieces of 8 tokens, evenly over it"


@pytest.mark.parametrize(("count", "length", "how"), [
    (3, 50, "1 pieces of 20 tokens"), (50, 4, "5 pieces of 4 tokens"), (1, 4, "1 pieces of 4"),
])  # fmt: skip
def test_a_short_text_has_fewer_pieces(tmp_path: Path, count: int, length: int, how: str) -> None:
    np.arange(20, dtype="<u2").tofile(tmp_path / "val.bin")
    found = measure_text(Tokens([tmp_path / "val.bin"], "uint16", 20), count, length)
    assert how in found.how
    assert found.figures["repetition"].value == 0
