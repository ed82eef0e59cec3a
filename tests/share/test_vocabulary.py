"""Vocabularies that come along: llama2.c's file, a folder's own, GPT-2's from tiktoken's cache."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

import pytest
import torch
import transformers

import foreign_support as plain
from sparrowlm.checkpoint import RunFolder
from sparrowlm.errors import SparrowError
from sparrowlm.pipeline import load_run
from sparrowlm.share.adopt import adopt, named_tokenizer
from sparrowlm.share.llama2c import read_tokenizer_bin
from sparrowlm.text.definition import BYTE_TO_CHARACTER, END_OF_TEXT, define_gpt2
from sparrowlm.text.tokenizer import Tokenizer, byte_tokenizer, load_tokenizer


def merged_by_score(text: str) -> list[int]:
    """The rule itself: of all neighbors, join those whose union scores highest, leftmost first."""
    scores = dict(plain.llama2c_pieces())
    ids = {piece: number for number, piece in enumerate(scores)}
    parts = []
    for character in ("▁" + text.replace(" ", "▁")) if text else "":
        known = character in ids
        parts += [character] if known else [f"<0x{byte:02X}>" for byte in character.encode()]
    while True:
        joined = [
            (scores.get(a + b, -1e9), -at) for at, (a, b) in enumerate(itertools.pairwise(parts))
        ]
        if not joined or max(joined)[0] == -1e9:
            return [ids[part] for part in parts]
        at = -max(joined)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def test_llama2cs_vocabulary_cuts_by_score(tmp_path: Path) -> None:
    tokenizer = read_tokenizer_bin(plain.write_llama2c_pieces(tmp_path / "tokenizer.bin"))
    assert tokenizer.vocab_size == len(plain.llama2c_pieces())
    assert tokenizer.eot_id == 1
    generator = torch.Generator().manual_seed(0)
    texts = ["", " ", "a  b", "鸟", "é\n"]
    for length in range(1, 60):
        drawn = torch.randint(0, 7, (length,), generator=generator).tolist()
        texts.append("".join("aabbc é"[number] for number in drawn))
    for text in texts:
        ids = tokenizer.encode(text)
        assert ids == merged_by_score(text), text
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("content", [b"", b"\0\0\0\0abc", struct.pack("<IfI", 8, 0.0, 99)])
def test_what_is_no_vocabulary_of_llama2c(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.bin").write_bytes(content)
    with pytest.raises(SparrowError):
        read_tokenizer_bin(tmp_path / "tokenizer.bin")


def test_a_story_of_llama2c(tmp_path: Path) -> None:
    """From its two files to a run that writes, and keeps its vocabulary."""
    tensors = plain.llama2c_weights(shared=True)
    make = plain.Maker()
    make("table", len(plain.llama2c_pieces()), plain.D)
    tensors["tok_embeddings.weight"] = tensors["output.weight"] = make.tensors["table"]
    torch.save({"model": tensors, "model_args": {"n_heads": 6}}, tmp_path / "ckpt.pt")
    vocabulary = plain.write_llama2c_pieces(tmp_path / "tokenizer.bin")
    adopt(tmp_path / "ckpt.pt", tmp_path / "run", tokenizer=str(vocabulary))
    loaded = load_run(tmp_path / "run", "cpu", "float32")
    assert loaded.tokenizer.encode("ab aba") == merged_by_score("ab aba")


def test_a_folder_brings_its_tokenizer(tmp_path: Path) -> None:
    shape = transformers.GPT2Config(vocab_size=260, n_positions=32, n_embd=24, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(shape).save_pretrained(tmp_path / "folder")
    byte_tokenizer().save(tmp_path / "folder")
    done = adopt(tmp_path / "folder", tmp_path / "run")
    assert done.tokenizer is not None
    assert done.notes == []
    run = load_tokenizer(tmp_path / "run")
    assert run.fingerprint == byte_tokenizer().fingerprint
    assert RunFolder(tmp_path / "run").load(1).state.tokenizer_fingerprint == run.fingerprint


def test_a_folders_tokenizer_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    shape = transformers.GPT2Config(vocab_size=260, n_positions=32, n_embd=24, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(shape).save_pretrained(tmp_path / "folder")
    (tmp_path / "folder" / "tokenizer.json").write_text("{}", encoding="utf-8")
    done = adopt(tmp_path / "folder", tmp_path / "run")
    assert done.tokenizer is None
    assert any("holds no vocabulary" in note for note in done.notes)


def test_gpt2s_from_the_cache_of_tiktoken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vocab = {character: number for number, character in enumerate(BYTE_TO_CHARACTER)}
    Tokenizer(define_gpt2(vocab | {"ab": 256, END_OF_TEXT: 257}, [("a", "b")]), "gpt2").save(
        tmp_path
    )
    (tmp_path / "tokenizer.json").unlink()  # vocab.json and merges.txt are left
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    assert named_tokenizer("gpt2").encode("cab") == [vocab["c"], 256]
