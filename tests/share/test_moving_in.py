"""The commands of docs/moving-in.md, each over a small checkpoint of its project."""

from __future__ import annotations

import json
import pickle
import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import foreign_support as plain
from sparrowlm.cli import main
from sparrowlm.text.definition import BYTE_TO_CHARACTER, END_OF_TEXT, define_gpt2
from sparrowlm.text.tokenizer import Tokenizer, byte_tokenizer

PAGE = (Path(__file__).parents[2] / "docs" / "moving-in.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"\| `sparrow (import [^`]+)` \|", PAGE)
V = 300  # room for the bytes and special tokens of every vocabulary below
LLAMA = {
    "model_type": "llama", "vocab_size": V, "hidden_size": plain.D, "intermediate_size": 40,
    "num_hidden_layers": plain.LAYERS, "num_attention_heads": 8, "num_key_value_heads": 4,
    "head_dim": 4, "max_position_embeddings": plain.T, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
    "tie_word_embeddings": True, "hidden_act": "silu",
}  # fmt: skip


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every file that the commands name."""
    home = tmp_path_factory.mktemp("elsewhere")
    for folder in ("out", "data/shakespeare_char", "minimind/model", "llama2.c", "models"):
        (home / folder).mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain, "V", V)
        shape = {"n_layer": plain.LAYERS, "n_head": 6, "n_embd": plain.D, "block_size": plain.T}
        nanogpt = plain.nanogpt_weights()
        torch.save({"model": nanogpt, "model_args": shape}, home / "out/ckpt.pt")
        torch.save(nanogpt, home / "checkpoint.pt")
        minimind = plain.minimind_weights(qk_norm=True, head_dim=6)
        torch.save(minimind, home / "out/pretrain_768.pth")
        llama = plain.minimind_weights(qk_norm=False, head_dim=4)  # under Hugging Face's names
        torch.save(plain.pile_weights(projection=True), home / "models/transformer_B.pt")
        llama2c = plain.llama2c_weights(shared=True)
        plain.write_llama2c(home / "stories15M.bin", llama2c, version=0, shared=True)
    characters = {number: chr(32 + number) for number in range(V)}
    meta = {"vocab_size": V, "itos": characters, "stoi": {}}
    (home / "data/shakespeare_char/meta.pkl").write_bytes(pickle.dumps(meta))
    byte_tokenizer().save(home / "minimind/model")
    plain.write_llama2c_pieces(home / "llama2.c/tokenizer.bin")
    byte_tokenizer().save(home / "path/to/folder")
    (home / "path/to/folder/config.json").write_text(json.dumps(LLAMA), encoding="utf-8")
    del llama["lm_head.weight"]  # tied
    save_file(llama, home / "path/to/folder/model.safetensors")
    ids = {character: number for number, character in enumerate(BYTE_TO_CHARACTER)}
    Tokenizer(define_gpt2(ids | {END_OF_TEXT: 256}, []), "gpt2").save(home / "cache")
    (home / "cache/tokenizer.json").unlink()  # vocab.json and merges.txt are left
    return home


def test_every_project_has_a_command() -> None:
    assert len(COMMANDS) == len(re.findall(r"^\| [^|]+ \| `sparrow ", PAGE, re.M)) == 7


@pytest.mark.parametrize("command", COMMANDS)
def test_an_import_as_the_page_types_it(
    command: str, elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And then the page's command to write, which only a run without a vocabulary refuses."""
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(elsewhere / "cache"))
    run = str(tmp_path / "x")
    assert main([run if word == "runs/x" else word for word in shlex.split(command)]) == 0
    (generate,) = re.findall(r"^sparrow (generate .+)$", PAGE, re.M)
    words = [run if word == "runs/x" else word for word in shlex.split(generate)]
    named = re.search("--tokenizer|--meta|path/to/folder", command)
    assert main([*words, "--max-tokens", "3", "--device", "cpu"]) == (0 if named else 2)
