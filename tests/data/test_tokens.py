"""Token files: the same dataset as from the text that the tokens stand for."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest

from sparrowlm.config.schema import DataConfig, TokenizerConfig
from sparrowlm.data import split, tokens
from sparrowlm.data.chats import open_sequences, prepare_sequences
from sparrowlm.data.prepare import prepare, prepare_cached
from sparrowlm.data.sequences import SequenceDataset
from sparrowlm.data.shards import Dataset, open_dataset
from sparrowlm.data.sources import Source
from sparrowlm.data.survey import kind_of
from sparrowlm.errors import ConfigError, DataError
from sparrowlm.evaluate.corpus import holds_chats
from sparrowlm.text.tokenizer import Tokenizer, byte_tokenizer, character_tokenizer

BYTES = byte_tokenizer()
TEXTS = [f"{n}\n" + "the moon, 麻雀 " * (n % 50) for n in range(150)]
IDS = [token for text in TEXTS for token in [*text.encode(), 256]]


def write(path: Path, ids: object, name: str = "tokens", dtype: str = "i4") -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset(name, data=np.array(ids, dtype))
    return path


def prepared(path: Path, tokenizer: Tokenizer = BYTES, **settings: object) -> Dataset:
    config = DataConfig(**({"workers": 1} | settings))  # pyright: ignore[reportArgumentType]
    out = path.with_name(f"{path.name}.out")
    prepare([path], tokenizer, out, config)
    return open_dataset(out, verify=True)


@pytest.mark.parametrize(
    ("chunk", "dtype"), [(50, "i4"), (999, "i4"), (1 << 20, "i4"), (1 << 20, "u2"), (1 << 20, "i8")]
)
def test_tokens_and_their_text_become_the_same_dataset(
    tmp_path: Path, chunk: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "CHUNK", chunk)
    for module in (tokens, split):  # of a document that is no chunk, the beginning decides
        monkeypatch.setattr(module, "HASHED", min(chunk, split.HASHED))
    rows = tmp_path / "a.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    text, ids = prepared(rows), prepared(write(tmp_path / "a.h5", IDS, dtype=dtype))
    assert text.val is not None
    assert ids.fingerprint == text.fingerprint
    assert ids.description["splits"] == text.description["splits"]
    assert ids.description["accepted"] == len(TEXTS)


def test_by_position_the_end_is_held_out_at_a_document(tmp_path: Path) -> None:
    dataset = prepared(write(tmp_path / "a.h5", IDS), split="tail")
    assert dataset.val is not None
    train, val = (part.read(0, len(part)).tolist() for part in (dataset.train, dataset.val))
    assert train + val == IDS
    assert train[-1] == 256
    assert len(val) == pytest.approx(0.1 * len(IDS), rel=0.1)


def test_without_an_end_of_text_the_end_is_held_out_by_position(tmp_path: Path) -> None:
    """nanoGPT's rule: 90 % and 10 % of the ids, to the id."""
    chance = np.random.default_rng(0)
    ids = chance.integers(0, 3, 1000)
    dataset = prepared(write(tmp_path / "a.hdf5", ids), character_tokenizer("ab麻"))
    assert dataset.val is not None
    assert dataset.train.read(0, 900).tolist() == ids[:900].tolist()
    assert dataset.val.read(0, 100).tolist() == ids[900:].tolist()
    assert (len(dataset.train), len(dataset.val)) == (900, 100)
    assert dataset.train_bytes() == "".join("ab麻"[token] for token in ids[:900]).encode()
    splits = dataset.description["splits"]
    assert splits["train"]["bytes"] == len(dataset.train_bytes() or b"")
    assert "at a line end" not in dataset.description["notes"][0]


@pytest.mark.parametrize("bad", [257, 50_256, -1])
def test_an_id_outside_the_vocabulary_is_told_with_its_position(
    tmp_path: Path, bad: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "CHUNK", 1000)
    path = write(tmp_path / "a.h5", [*IDS[:2345], bad, *IDS])
    with pytest.raises(DataError, match=rf"a\.h5: token 2345 is {bad}, .* vocabulary has 257"):
        prepared(path)


@pytest.mark.parametrize(
    ("name", "ids", "dtype", "told"),
    [
        ("ids", [1], "i4", "no dataset 'tokens'; it has 'ids'"),
        ("tokens", [[1, 2], [3, 4]], "i4", r"shape \(2, 2\), and must be integers in a row"),
        ("tokens", [1.5], "f4", "is float32"),
        ("tokens", [], "i4", "holds no text"),
        ("tokens/x", [1], "i4", "no dataset 'tokens'"),
    ],
)
def test_what_holds_no_tokens_is_told(
    tmp_path: Path, name: str, ids: list[object], dtype: str, told: str
) -> None:
    with pytest.raises(DataError, match=told):
        prepared(write(tmp_path / "a.h5", ids, name, dtype))


PACKED = [[*b"ask me", 256, *b"so", 256, 0, 0], [*b"one", 256, *b"two", 256, *b"sky", 256]]
LEARNED = [[0] * 7 + [1, 1, 1, 0, 0], [0] * 4 + [1] * 4 + [0, 0, 1, 1]]


def packed(folder: Path, ids: object = PACKED, mask: object = LEARNED) -> Path:
    """A packed fine-tuning file, with the tokenizer of bytes that has turns."""
    with h5py.File(folder / "sft.h5", "w") as file:
        file.create_dataset("tokens", data=np.array(ids, "i4"))
        file.create_dataset("loss_mask", data=np.array(mask, "i1"))
    definition = json.loads(json.dumps(BYTES.definition))
    for number, name in enumerate(("<|im_start|>", "<|im_end|>")):
        token = definition["added_tokens"][0] | {"id": 257 + number, "content": name}
        definition["added_tokens"].append(token)
    (folder / "tokenizer").mkdir()
    Tokenizer(definition, "folder").save(folder / "tokenizer")
    return folder / "sft.h5"


def sequences(path: Path, seq_len: int = 16, **settings: object) -> SequenceDataset:
    config = DataConfig(path=(str(path),), **({"val_fraction": 0.0} | settings))
    tokenizer = TokenizerConfig(kind="folder", path=str(path.parent / "tokenizer"))
    cache = path.parent / "cache"
    return open_sequences(prepare_sequences(config, tokenizer, cache, "chats", seq_len))


@pytest.mark.parametrize("chunk", [12, 1 << 20])
def test_packed_rows_are_sequences_with_the_masks_they_bring(
    tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "CHUNK", chunk)
    dataset = sequences(packed(tmp_path))
    sources = [Source(tmp_path / "sft.h5")]
    assert kind_of(sources, ("pairs", "chats")) == "chats"
    assert holds_chats(sources, "text")
    assert dataset.description["accepted"] == len(dataset.train) == 2
    for number, (ids, mask) in enumerate(zip(PACKED, LEARNED, strict=True)):
        (item,) = dataset.train.bundle(number)
        stop = 10 if number == 0 else 12  # what follows the last learned id is padding
        assert item.ids.tolist() == ids[:stop]
        assert item.mask.tolist() == [bool(one) for one in mask[:stop]]
    cut = sequences(tmp_path / "sft.h5", seq_len=9)
    assert cut.description["noted"] == {"cut at the context": 1}


def test_bad_packed_rows_are_counted_or_told(tmp_path: Path) -> None:
    bad = [[*PACKED[0][:-1], 259], PACKED[0], PACKED[1]]
    masks = [LEARNED[0], [2] * 12, LEARNED[1]]
    path = packed(tmp_path, [*bad, PACKED[0]], [*masks, [0] * 12])
    with pytest.raises(DataError, match=r"sft\.h5:1: token 11 is 259, and the vocabulary has 259"):
        sequences(path)
    dataset = sequences(path, skip_bad=True)
    facts = dataset.description
    assert (facts["accepted"], facts["rejected"], len(dataset.train)) == (2, 2, 1)
    assert facts["noted"] == {"left out: no answer": 1}
    assert "loss_mask holds 2, and must be 0 or 1" in (
        Path(facts["folder"]) / "rejected.jsonl"
    ).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("ids", "mask", "told"),
    [
        (PACKED, [[0, 1]] * 2, r"shape \(2, 12\) and 'loss_mask' \(2, 2\)"),
        ([1, 2, 3], [0, 1, 1], r"both must be \(rows, tokens of a row\)"),
    ],
)
def test_packed_files_of_other_shapes_are_told(
    tmp_path: Path, ids: object, mask: object, told: str
) -> None:
    with pytest.raises(DataError, match=told):
        sequences(packed(tmp_path, ids, mask))


def test_packed_rows_without_a_mask_or_a_vocabulary_are_told(tmp_path: Path) -> None:
    path = packed(tmp_path)
    config = DataConfig(path=(str(path),))
    with pytest.raises(ConfigError, match=r'tokenizer\.kind: is "bpe", which is learned'):
        prepare_sequences(config, TokenizerConfig(kind="bpe"), tmp_path / "cache", "chats", 16)
    with pytest.raises(DataError, match='stage = "sft"'):
        prepare([path], BYTES, tmp_path / "out", DataConfig())
    with h5py.File(path, "a") as file:
        del file["loss_mask"]
    with pytest.raises(DataError, match="no dataset 'loss_mask'; it has 'tokens'"):
        sequences(path)


def test_text_and_tokens_do_not_mix(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", IDS)
    (tmp_path / "b.txt").write_text("some text\n" * 9)
    with pytest.raises(DataError, match=r"a\.h5: holds tokens, and other inputs hold text"):
        prepare([tmp_path], BYTES, tmp_path / "out", DataConfig())


def test_training_on_tokens_needs_the_tokenizer_that_made_them(tmp_path: Path) -> None:
    config = DataConfig(path=(str(write(tmp_path / "a.h5", IDS)),))
    folder = prepare_cached(config, TokenizerConfig(kind="bytes"), tmp_path / "cache")
    assert open_dataset(folder).vocab_size == 257
    with pytest.raises(ConfigError, match=r'tokenizer\.kind: is "bpe", which is learned'):
        prepare_cached(config, TokenizerConfig(kind="bpe"), tmp_path / "cache")


def test_every_document_starts_after_an_end(tmp_path: Path) -> None:
    ids = [256, 256, *b"ab", 256, *b"no end"]
    dataset = prepared(write(tmp_path / "a.h5", ids * 40), val_fraction=0.0)
    starts = dataset.train.document_starts
    assert starts is not None
    found = dataset.train.read(0, len(dataset.train)).tolist()
    assert found == ids * 40
    assert all(found[stop - 1] == 256 for _, stop in pairwise(starts.tolist()))
