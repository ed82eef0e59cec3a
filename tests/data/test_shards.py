from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from sparrowlm.data import shards
from sparrowlm.data.shards import Tokens, is_dataset, open_dataset
from sparrowlm.errors import DataError
from sparrowlm.text.tokenizer import byte_tokenizer


def nanogpt(folder: Path, text: str, meta: bool = True) -> Path:
    """What nanoGPT's data/shakespeare_char/prepare.py writes."""
    chars = sorted(set(text))
    stoi = {char: number for number, char in enumerate(chars)}
    cut = int(len(text) * 0.9)
    folder.mkdir(parents=True)
    for name, part in (("train", text[:cut]), ("val", text[cut:])):
        np.array([stoi[char] for char in part], dtype=np.uint16).tofile(folder / f"{name}.bin")
    if meta:
        itos = dict(enumerate(chars))
        content = {"vocab_size": len(chars), "itos": itos, "stoi": stoi}
        (folder / "meta.pkl").write_bytes(pickle.dumps(content))
    return folder


def test_tokens_read_across_shard_borders(tmp_path: Path) -> None:
    ids = np.arange(100, dtype="<u2")
    paths = []
    for number, (start, stop) in enumerate([(0, 7), (7, 7), (7, 8), (8, 60), (60, 100)]):
        paths.append(tmp_path / f"{number}.bin")
        ids[start:stop].tofile(paths[-1])
    tokens = Tokens(paths, "uint16", 100)
    assert len(tokens) == 100
    for start in range(0, 100, 3):
        for length in (0, 1, 5, 40):
            if start + length <= 100:
                found = tokens.read(start, length)
                assert found.dtype == np.int64
                assert found.tolist() == list(range(start, start + length))
    assert np.concatenate(list(tokens.pieces(9))).tolist() == list(range(100))
    assert tokens.rows(np.array([98, 0, 6]), 4).tolist() == [
        [98, 99, 0, 1],
        [0, 1, 2, 3],
        [6, 7, 8, 9],
    ]
    with pytest.raises(IndexError):
        tokens.read(98, 3)


def test_nanogpt_folder_is_read_as_it_is(tmp_path: Path) -> None:
    text = "To be, or not to be: that is the question.\n" * 50
    dataset = open_dataset(nanogpt(tmp_path / "char", text))
    cut = int(len(text) * 0.9)
    assert dataset.val is not None
    assert dataset.tokenizer is not None
    assert dataset.vocab_size == len(set(text)) == dataset.tokenizer.vocab_size
    assert dataset.eot_id is None
    assert dataset.train_bytes() == text[:cut].encode()
    assert dataset.val_bytes() == text[cut:].encode()
    assert dataset.val_bytes(limit=10) == text[cut : cut + 10].encode()
    assert dataset.tokenizer.encode("be") == dataset.train.read(3, 2).tolist()


def test_a_character_vocabulary_in_any_order_is_kept(tmp_path: Path) -> None:
    folder = nanogpt(tmp_path / "char", "abba", meta=False)
    meta = {"vocab_size": 2, "itos": {0: "b", 1: "a"}, "stoi": {"b": 0, "a": 1}}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    dataset = open_dataset(folder)
    assert dataset.tokenizer is not None
    assert dataset.tokenizer.decode([0, 1, 1]) == "baa"


def test_without_meta_the_vocabulary_is_the_largest_id_and_one(tmp_path: Path) -> None:
    folder = nanogpt(tmp_path / "char", "hello world" * 10, meta=False)
    dataset = open_dataset(folder)
    assert dataset.vocab_size == 8
    assert dataset.tokenizer is None
    assert dataset.val_bytes() is None
    named = open_dataset(folder, tokenizer=byte_tokenizer())
    assert (named.vocab_size, named.eot_id) == (257, 256)


def test_ids_beyond_meta_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    folder = nanogpt(tmp_path / "char", "hello world" * 10)
    np.array([1, 2, 99, 1], dtype=np.uint16).tofile(folder / "val.bin")
    with pytest.raises(DataError, match=r"val\.bin \(token 2\): token id 99 is not in the"):
        open_dataset(folder)


def test_a_large_file_is_checked_when_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening looks at samples of it, and reading at everything it reads."""
    monkeypatch.setattr(shards, "FULL_CHECK", 64)
    monkeypatch.setattr(shards, "PIECE", 16)
    ids = np.zeros(256, dtype="<u2")
    ids[20] = 7
    ids.tofile(tmp_path / "x.bin")
    tokens = Tokens([tmp_path / "x.bin"], "uint16", 5)
    tokens.check_vocabulary()
    assert tokens.read(21, 200).sum() == 0
    with pytest.raises(DataError, match="token id 7 is not in the vocabulary of 5"):
        tokens.read(0, 100)


def test_an_odd_number_of_bytes_is_an_error(tmp_path: Path) -> None:
    folder = nanogpt(tmp_path / "char", "hello world" * 10)
    with (folder / "train.bin").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(DataError, match=r"train\.bin: has 199 bytes, which is no whole number"):
        open_dataset(folder)
    (folder / "train.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"train\.bin: is empty"):
        open_dataset(folder)


def test_a_headerless_file_may_hold_uint32(tmp_path: Path) -> None:
    np.arange(70_000, dtype="<u4").tofile(tmp_path / "train.bin")
    dataset = open_dataset(tmp_path, token_dtype="uint32")
    assert dataset.vocab_size == 70_000
    assert dataset.val is None
    assert dataset.train.read(69_998, 2).tolist() == [69_998, 69_999]


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self):
            return (print, ("ran",))

    folder = nanogpt(tmp_path / "char", "hello" * 10, meta=False)
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": Harmful()}))
    with pytest.raises(DataError, match="asks to run code"):
        open_dataset(folder)
    (folder / "meta.pkl").write_bytes(pickle.dumps(["no", "vocabulary"]))
    with pytest.raises(DataError, match=r"meta\.pkl: names no vocab_size"):
        open_dataset(folder)


def test_fingerprint_follows_contents_and_not_places(tmp_path: Path) -> None:
    folder = nanogpt(tmp_path / "one", "hello world" * 10)
    first = open_dataset(folder).fingerprint
    shutil.copytree(folder, tmp_path / "two")
    assert open_dataset(tmp_path / "two").fingerprint == first
    with (tmp_path / "two" / "train.bin").open("r+b") as file:
        file.seek(40)
        file.write(b"\1\0")
    assert open_dataset(tmp_path / "two").fingerprint != first


def test_no_dataset_is_told(tmp_path: Path) -> None:
    assert not is_dataset(tmp_path)
    with pytest.raises(DataError, match="holds no prepared dataset"):
        open_dataset(tmp_path)
