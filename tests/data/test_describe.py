from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from sparrowlm.config import DataConfig
from sparrowlm.data import describe
from sparrowlm.data.describe import document_lengths, random_starts, spans
from sparrowlm.data.prepare import prepare
from sparrowlm.data.shards import Dataset, Tokens, open_dataset
from sparrowlm.text.tokenizer import byte_tokenizer

TEXTS = [f"{number}\n" + "麻雀 " * (number % 50) for number in range(500)]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    rows = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (tmp_path / "a.jsonl").write_text(rows)
    config = DataConfig(val_fraction=0.0, workers=1)
    prepare([tmp_path / "a.jsonl"], byte_tokenizer(), tmp_path / "out", config)
    return open_dataset(tmp_path / "out")


def test_lengths_are_those_of_the_documents(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = sorted(len(text.encode()) + 1 for text in TEXTS)
    starts = dataset.train.document_starts
    without = Tokens(dataset.train.paths, "uint16", dataset.vocab_size)
    for window in (1 << 20, 7, 499, 500):
        monkeypatch.setattr(describe, "WINDOW", window)
        for tokens in (dataset.train, without):  # by their starts, by their ends
            found = document_lengths(tokens, dataset.eot_id)
            assert found is not None
            assert found.documents == len(starts) == 500
            assert (found.shortest, found.longest) == (expected[0], expected[-1])
            assert found.percentile(0.5) == expected[249]
            assert found.percentile(1.0) == expected[-1]
            assert sum(count for _, _, count in found.bins()) == 500
            for low, high, count in found.bins():
                assert count == sum(low <= length <= high for length in expected)
    assert document_lengths(without, None) is None


def test_very_long_documents_are_counted_together() -> None:
    counts = np.zeros(describe.EXACT + 1, np.int64)
    counts[10], counts[-1] = 1, 2
    found = describe.Lengths(counts, 1_000_000)
    assert found.bins()[0] == (8, 15, 1)
    assert found.bins()[-1] == (65536, 1_000_000, 2)


def test_rows_are_read_with_borders_and_specials(dataset: Dataset) -> None:
    assert dataset.tokenizer is not None
    [start] = random_starts(dataset.train, 1, 200, 42)
    assert random_starts(dataset.train, 1, 200, 42) == [start]
    ids = dataset.train.read(start, 200)
    ends = np.flatnonzero(ids[:-1] == dataset.eot_id)
    found = list(spans(ids, frozenset((ends + 1).tolist()), dataset.tokenizer))
    assert [span.kind for span in found].count("border") == len(ends)
    for before, after in pairwise(found):
        if after.kind == "border":
            assert (before.kind, before.text) == ("special", "<|endoftext|>")


def test_text_that_looks_special_is_not(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    ids = np.array([*tokenizer.encode("a <|endoftext|> b"), tokenizer.eot_id])
    found = list(spans(ids, frozenset(), tokenizer))
    assert [(span.kind, span.text) for span in found] == [
        ("text", "a <|endoftext|> b"),
        ("special", "<|endoftext|>"),
    ]


def test_a_character_cut_at_the_edge_shows_its_bytes() -> None:
    tokenizer = byte_tokenizer()
    ids = np.array(tokenizer.encode("麻雀")[1:4])
    assert [span.text for span in spans(ids, frozenset(), tokenizer)] == [r"\xba\xbb\xe9"]
