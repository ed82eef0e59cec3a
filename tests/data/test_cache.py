from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from sparrowlm import files
from sparrowlm.config.schema import DataConfig, TokenizerConfig
from sparrowlm.data import cache, split
from sparrowlm.data.cache import cache_key, training_texts
from sparrowlm.data.prepare import prepare_cached
from sparrowlm.data.shards import open_dataset
from sparrowlm.data.sources import Source, as_sources
from sparrowlm.errors import DataError

TEXTS = [f"poem {number}: the moon, {number} times" for number in range(300)]
SMALL = TokenizerConfig(kind="bpe", vocab_size=280)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def test_prepared_once_and_found_again(rows: Path, tmp_path: Path) -> None:
    config = DataConfig(path=(str(rows),))
    told: list[tuple[str, int, int]] = []
    folder = prepare_cached(
        config, SMALL, tmp_path / "cache", lambda *told_of: told.append(told_of)
    )
    dataset = open_dataset(folder, verify=True)
    assert dataset.vocab_size == 280
    size = rows.stat().st_size
    assert told[-1] == ("encoding", size, size)
    assert ("learning the vocabulary", size, size) in told
    made = (folder / files.MANIFEST).stat().st_mtime_ns
    moved = rows.rename(tmp_path / "elsewhere.jsonl")
    again = prepare_cached(replace(config, path=(str(moved),)), SMALL, tmp_path / "cache")
    assert again == folder
    assert (again / files.MANIFEST).stat().st_mtime_ns == made
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]


def test_a_damaged_entry_is_made_again(rows: Path, tmp_path: Path) -> None:
    config = DataConfig(path=(str(rows),))
    folder = prepare_cached(config, SMALL, tmp_path / "cache")
    before = files.read_json(folder / files.MANIFEST)
    (folder / "val-00000.bin").unlink()
    assert prepare_cached(config, SMALL, tmp_path / "cache") == folder
    assert files.read_json(folder / files.MANIFEST) == before
    files.verify(folder)


def test_the_key_follows_contents_and_settings(rows: Path, tmp_path: Path) -> None:
    config = DataConfig()
    found = as_sources([rows])
    first = cache_key(found, config, SMALL)
    same = [
        cache_key(found, replace(config, workers=5, document_mask=True), SMALL),
        cache_key(as_sources([shutil.copy(rows, tmp_path / "b.jsonl")]), config, SMALL),
    ]
    assert same == [first, first]
    other = [
        cache_key(found, replace(config, val_fraction=0.2), SMALL),
        cache_key(found, replace(config, split="tail"), SMALL),
        cache_key(found, config, replace(SMALL, vocab_size=281)),
        cache_key(found, config, TokenizerConfig(kind="bytes")),
        cache_key([Source(rows, "group")], config, SMALL),
        cache_key(as_sources([shutil.copy(rows, tmp_path / "b.txt")]), config, SMALL),
    ]
    rows.write_text(rows.read_text() + '{"text": "more"}\n')
    other.append(cache_key(found, config, SMALL))
    assert len({first, *other}) == 8


def test_a_large_file_is_hashed_by_samples(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = cache.content_hash(rows)
    monkeypatch.setattr(cache, "WHOLE", 100)
    monkeypatch.setattr(cache, "BLOCK", 10)
    sampled = cache.content_hash(rows)
    assert sampled != whole
    with rows.open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"!")
    assert cache.content_hash(rows) != sampled


def test_bpe_learns_from_the_training_side_alone(rows: Path, tmp_path: Path) -> None:
    texts = list(training_texts(as_sources([rows]), DataConfig(), tmp_path))
    assert texts == [text for text in TEXTS if not split.falls_out(text.encode(), 0.1)]
    dataset = open_dataset(prepare_cached(DataConfig(path=(str(rows),)), SMALL, tmp_path / "c"))
    assert dataset.train_bytes() == "".join(texts).encode()
    assert [path.name for path in tmp_path.glob("spool*")] == []


@pytest.mark.parametrize("rule", ["hash", "tail"])
@pytest.mark.parametrize("lines", [1, 7, 400])
def test_where_position_splits_bpe_learns_from_what_comes_before(
    tmp_path: Path, rule: str, lines: int
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(f"line number {number}\n" for number in range(lines)))
    config = DataConfig(path=(str(path),), split=rule)  # pyright: ignore[reportArgumentType]
    texts = list(training_texts(as_sources([path]), config, tmp_path))
    folder = prepare_cached(config, replace(SMALL, vocab_size=276), tmp_path / "cache")
    assert "".join(texts).encode() == open_dataset(folder).train_bytes()


def test_characters_are_those_of_all_the_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abab\n" * 50 + "only here: z\n")
    config = DataConfig(path=(str(path),))
    dataset = open_dataset(prepare_cached(config, TokenizerConfig(kind="chars"), tmp_path / "c"))
    assert dataset.tokenizer is not None
    assert dataset.vocab_size == len(set(path.read_text()))
    assert (dataset.val_bytes() or b"").endswith(b"only here: z\n")


def test_a_fault_leaves_nothing_in_the_cache(rows: Path, tmp_path: Path) -> None:
    with rows.open("a") as file:
        file.write("{broken\n")
    with pytest.raises(DataError, match=r"a\.jsonl:301: not JSON"):
        prepare_cached(DataConfig(path=(str(rows),)), SMALL, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
