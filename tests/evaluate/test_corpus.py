"""Any text and any chats: the same figures however they come, and as a pass by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from sparrowlm.config import DataConfig, ModelConfig, TokenizerConfig
from sparrowlm.data.prepare import prepare
from sparrowlm.errors import ConfigError, DataError
from sparrowlm.evaluate.answering import Subject
from sparrowlm.evaluate.corpus import Reading, check_reading, measure_data
from sparrowlm.runtime import Runtime
from sparrowlm.text.chat import ChatFormat
from sparrowlm.text.conversations import chat_of
from sparrowlm.text.tokenizer import Tokenizer, byte_tokenizer, make_tokenizer
from writing_support import random_model

CPU = Runtime(torch.device("cpu"), "float64")
TEXTS = ["The sparrow is small.", "No organ is missing: 五脏俱全.", "It sings at dawn. " * 9]


def subject_of(tokenizer: Tokenizer, folder: Path, context: int = 32) -> tuple[Subject, Path]:
    shape = ModelConfig(
        vocab_size=tokenizer.vocab_size, d_model=16, n_layers=1, n_heads=2, max_seq_len=context
    )
    place = folder / "vocabulary"
    place.mkdir(exist_ok=True)
    tokenizer.save(place)
    return Subject(random_model(shape), tokenizer, CPU), place


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARROW_CACHE", str(tmp_path / "cache"))
    rows = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (tmp_path / "texts.jsonl").write_text(rows, encoding="utf-8")
    return tmp_path / "texts.jsonl"


def by_hand(subject: Subject, ids: list[int], window: int, stride: int) -> float:
    """The nats of all ids but the first, each counted in the first window that holds it."""
    total, counted, start = 0.0, 0, 0
    while counted < len(ids) - 1:
        piece = torch.tensor(ids[start : start + window + 1])
        with torch.no_grad():
            logits = subject.model.logits(subject.model(piece[None, :-1]).hidden)[0]
        nats = F.cross_entropy(logits, piece[1:], reduction="none")[counted - start :]
        total, counted = total + nats.sum().item(), counted + len(nats)
        start += stride
    return total


@pytest.mark.parametrize(("window", "stride"), [(32, 0), (20, 0), (32, 8), (32, 1), (24, 24)])
def test_windows_and_strides_by_hand(texts: Path, tmp_path: Path, window: int, stride: int) -> None:
    tokenizer = byte_tokenizer()
    subject, vocabulary = subject_of(tokenizer, tmp_path)
    ids = [id for text in TEXTS for id in [*tokenizer.encode(text), 256]]
    reading = Reading(window, stride=stride, rows=3)
    found = measure_data(str(texts), subject, vocabulary, reading).figures
    nats = by_hand(subject, ids, window, stride or window)
    size = sum(len(text.encode()) for text in TEXTS) - 1
    assert (found["loss"].total, found["loss"].count) == (pytest.approx(nats), len(ids) - 1)
    assert found["bits_per_byte"].total == pytest.approx(nats / math.log(2))
    assert found["bits_per_byte"].count == size


def test_prepared_or_not_is_the_same(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = byte_tokenizer()
    subject, vocabulary = subject_of(tokenizer, tmp_path)
    prepare([texts], tokenizer, tmp_path / "ready", DataConfig(val_fraction=0.0, workers=1))
    as_text = measure_data(str(texts), subject, vocabulary, Reading())
    as_data = measure_data(str(tmp_path / "ready"), subject, vocabulary, Reading())
    assert as_text.figures == as_data.figures
    assert as_text.how == as_data.how == "windows of 32 side by side, 219 tokens"
    for home in ("HOME", "USERPROFILE"):  # the second on Windows
        monkeypatch.setenv(home, str(tmp_path))
    assert measure_data("~/ready", subject, vocabulary, Reading()).figures == as_data.figures


def test_one_split_of_what_was_prepared(texts: Path, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    subject, vocabulary = subject_of(tokenizer, tmp_path)
    prepare([texts], tokenizer, tmp_path / "ready", DataConfig(split="tail", workers=1))
    sizes = {
        split: measure_data(str(tmp_path / "ready"), subject, vocabulary, Reading(), split=split)
        for split in ("", "val", "train")
    }
    assert sizes[""].figures == sizes["val"].figures
    assert sizes["val"].figures["loss"].count < sizes["train"].figures["loss"].count
    learned = make_tokenizer(TokenizerConfig(vocab_size=300), lambda: TEXTS)
    other, place = subject_of(learned, tmp_path)
    with pytest.raises(ConfigError, match="another vocabulary"):
        measure_data(str(tmp_path / "ready"), other, place, Reading())


def test_chats_count_answers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARROW_CACHE", str(tmp_path / "cache"))
    tokenizer = make_tokenizer(TokenizerConfig(vocab_size=300), lambda: TEXTS)
    subject, vocabulary = subject_of(tokenizer, tmp_path, context=96)
    rows = [
        {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": say}]}
        for ask, say in (("who?", "The sparrow."), ("how large?", "Small, and whole."), ("a", "b"))
    ]
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = measure_data(str(file), subject, vocabulary, Reading())
    nats, count, size = 0.0, 0, 0
    for row in rows:
        ids, mask = ChatFormat(tokenizer).encode(chat_of(row))
        piece = torch.from_numpy(ids)
        with torch.no_grad():
            logits = subject.model.logits(subject.model(piece[None, :-1]).hidden)[0]
        each = F.cross_entropy(logits, piece[1:], reduction="none")
        nats += each[torch.from_numpy(mask[1:])].sum().item()
        count += int(mask[1:].sum())
        size += len(tokenizer.decode_bytes(ids[mask]))
    assert found.figures["loss"].total == pytest.approx(nats)
    assert found.figures["loss"].count == count
    assert found.figures["bits_per_byte"].count == size
    assert "packed rows of 96" in found.how
    forced = measure_data(str(file), subject, vocabulary, Reading(), kind="chats")
    assert forced.figures == found.figures
    with pytest.raises(DataError, match="no key 'text'"):
        measure_data(str(file), subject, vocabulary, Reading(), kind="text")


@pytest.mark.parametrize(
    ("reading", "told"),
    [
        (Reading(33), "--seq-len 33: the model's context is 32"),
        (Reading(16, stride=17), "--stride 17"),
        (Reading(windows=-1), "--windows -1"),
    ],
)
def test_windows_that_cannot_be(reading: Reading, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_reading(reading, 32)
