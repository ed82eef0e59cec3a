"""What is broken or hostile is refused with one message, and runs nothing."""

from __future__ import annotations

import math
import os
import pickle
import struct
from pathlib import Path

import pytest
import torch

import foreign_support as plain
from sparrowlm.checkpoint import find_run
from sparrowlm.cli import main
from sparrowlm.share.adopt import adopt
from sparrowlm.share.asked import Asked


class Hostile:
    """Asks to make a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


class SpyConfig(Hostile):
    """The same under a name that looks like settings."""


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Import a file from the command line; exit code 2, and nothing is there afterwards."""

    def check(name: str, *options: str) -> str:
        before = sorted(os.listdir(tmp_path))
        arguments = ["import", str(tmp_path / name), "--out", str(tmp_path / "run"), *options]
        assert main(arguments) == 2
        assert sorted(os.listdir(tmp_path)) == before
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.startswith("error: ")
        assert "Traceback" not in told.err
        assert "weights_only" not in told.err  # PyTorch's own message says how to run it anyway
        return told.err

    return check


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", [Hostile, SpyConfig])
def test_a_checkpoint_that_runs_code(tmp_path: Path, refused, zipped: bool, kind: type) -> None:
    content = {"model": plain.nanogpt_weights(), "config": kind(tmp_path / "was-here")}
    torch.save(content, tmp_path / "ckpt.pt", _use_new_zipfile_serialization=zipped)
    assert "asks to run code" in refused("ckpt.pt")


def test_a_hostile_shard(tmp_path: Path, refused) -> None:
    (tmp_path / "folder").mkdir()
    values = '{"model_type": "gpt2", "vocab_size": 9, "n_embd": 8, "n_layer": 1, "n_head": 2}'
    (tmp_path / "folder" / "config.json").write_text(values)
    torch.save({"w": Hostile(tmp_path / "was-here")}, tmp_path / "folder" / "pytorch_model.bin")
    assert "asks to run code" in refused("folder")


def test_a_hostile_vocabulary(tmp_path: Path, refused) -> None:
    torch.save(plain.nanogpt_weights(), tmp_path / "ckpt.pt")
    meta = {"itos": {0: "a"}, "stoi": Hostile(tmp_path / "was-here")}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    options = ("--n-heads", "6", "--meta", str(tmp_path / "meta.pkl"))
    assert "asks to run code" in refused("ckpt.pt", *options)


@pytest.mark.parametrize(
    "itos", [None, {}, {1: "a"}, {0: "ab"}, {0: 5}, ["a"], {0: "a", "b": "c"}, {0: "\ud800"}]
)
def test_a_pickle_without_characters(tmp_path: Path, refused, itos: object) -> None:
    torch.save(plain.nanogpt_weights(), tmp_path / "ckpt.pt")
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"itos": itos}))
    options = ("--n-heads", "6", "--meta", str(tmp_path / "meta.pkl"))
    assert "no vocabulary of characters" in refused("ckpt.pt", *options)


@pytest.mark.parametrize("kept", [0, 10, 700, 60_000, -100])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_cut_checkpoint(tmp_path: Path, refused, kept: int, zipped: bool) -> None:
    path = tmp_path / "ckpt.pt"
    large = {
        "unused": torch.ones(64, 512)
    }  # the end of a short zip file is looked for to its start
    torch.save(plain.nanogpt_weights() | large, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:kept])
    assert "is not a whole checkpoint" in refused("ckpt.pt")


ONE = torch.tensor(1.0)
H, M = "transformer.h.0", "model.layers.0"
MALFORMED = {  # what is put among a model's tensors, and whether it has norms of minimind
    "a number for a table": ({"transformer.wte.weight": ONE}, plain.nanogpt_weights),
    "a row for a table": ({"transformer.wte.weight": torch.ones(9)}, plain.nanogpt_weights),
    "two rows for three": ({f"{H}.attn.c_attn.weight": torch.ones(2, 9)}, plain.nanogpt_weights),
    "a number for heads": ({f"{H}.attn.c_attn.weight": ONE}, plain.nanogpt_weights),
    "a number for an mlp": ({f"{H}.mlp.c_fc.weight": ONE}, plain.nanogpt_weights),
    "a key that is no name": ({3: torch.ones(2, 2)}, plain.nanogpt_weights),
    "a key of two": ({(1, 2): torch.ones(2, 2)}, plain.nanogpt_weights),
    "a sparse head": ({"lm_head.weight": torch.eye(plain.D).to_sparse()}, plain.nanogpt_weights),
    "no numbers": ({"lm_head.weight": torch.ones(9, 9, device="meta")}, plain.nanogpt_weights),
    "norms of nothing": ({f"{M}.self_attn.q_norm.weight": torch.ones(0)}, plain.minimind_weights),
    "a number for queries": ({f"{M}.self_attn.q_proj.weight": ONE}, plain.minimind_weights),
    "a row for a gate": ({f"{M}.mlp.gate_proj.weight": torch.ones(3)}, plain.minimind_weights),
    "a row of experts": ({f"{M}.mlp.experts.gate_up_proj": torch.ones(4)}, plain.minimind_weights),
    "experts that differ": (
        {f"{M}.mlp.experts.{n}.gate_proj.weight": torch.ones(4, 2 + n) for n in range(2)},
        plain.minimind_weights,
    ),
    "odd queries": ({"layers.0.attention.wq.weight": torch.ones(33, 9)}, plain.llama2c_weights),
    "a head of another width": (
        {"attn_blocks.0.attn.heads.1.query.weight": torch.ones(8, 31)},
        plain.pile_weights,
    ),
}
OF = {
    plain.nanogpt_weights: ({}, ()),
    plain.minimind_weights: ({"qk_norm": True, "head_dim": 6}, ()),
    plain.llama2c_weights: ({"shared": True}, ("--n-heads", "6")),
    plain.pile_weights: ({"projection": True}, ()),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_tensors_make_no_model(tmp_path: Path, refused, case: str) -> None:
    odd, make = MALFORMED[case]
    settings, options = OF[make]
    torch.save(make(**settings) | odd, tmp_path / "ckpt.pt")
    assert "ckpt.pt: " in refused("ckpt.pt", *options)


LLAMA = (
    '{"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1,'
    ' "num_attention_heads": 2, "intermediate_size": 8}'
)


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        torch.ones(2),
        {3: torch.ones(2, 2)},
        {"model.norm.weight": 3},
        {"lm_head.weight": torch.eye(9).to_sparse()},
    ],
)
@pytest.mark.parametrize("sharded", [True, False])
def test_a_folder_without_a_state_dict(
    tmp_path: Path, refused, content: object, sharded: bool
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text(LLAMA)
    torch.save(content, folder / ("a.bin" if sharded else "pytorch_model.bin"))
    if sharded:
        index = '{"weight_map": {"x": "a.bin"}}'
        (folder / "pytorch_model.bin.index.json").write_text(index)
    told = refused("folder")
    assert "no plain tensor" in told or "no weights" in told


def test_a_model_type_that_is_no_word(tmp_path: Path, refused) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text('{"model_type": ["llama"]}')
    assert "is a model of type ['llama']" in refused("folder")


@pytest.mark.parametrize("kept", [28, 30, 36, 255])
def test_a_cut_header(tmp_path: Path, refused, kept: int) -> None:
    tensors = plain.llama2c_weights(shared=True)
    plain.write_llama2c(tmp_path / "model.bin", tensors, version=1, shared=True)
    path = tmp_path / "model.bin"
    path.write_bytes(path.read_bytes()[:kept])
    assert "cut short" in refused("model.bin")


@pytest.mark.parametrize(
    "options",
    [
        ("--score-width", "-5"),
        ("--norm-eps", "nan"),
        ("--norm-eps", "inf"),
        ("--norm-eps", "-1"),
    ],
)
def test_an_option_that_is_no_number_above_zero(tmp_path: Path, refused, options) -> None:
    torch.save(plain.pile_weights(projection=True), tmp_path / "ckpt.pt")
    assert f"{options[0]}: must be a number above zero" in refused("ckpt.pt", "=".join(options))


@pytest.mark.parametrize(
    "content", [3, [torch.ones(2, 2)], {"model": {}}, {"step": 3}, {"weight": torch.ones(3)}]
)
def test_a_file_without_weights(tmp_path: Path, refused, content: object) -> None:
    torch.save(content, tmp_path / "ckpt.pt")
    assert "no weights" in refused("ckpt.pt")


def test_an_unknown_project_is_told_by_its_tensors(tmp_path: Path, refused) -> None:
    torch.save({"encoder.weight": torch.ones(2, 2)}, tmp_path / "ckpt.pt")
    assert "encoder.weight" in refused("ckpt.pt")


def test_no_such_file(refused) -> None:
    assert "no such file" in refused("ckpt.pt")


@pytest.mark.parametrize("change", ["missing", "left over", "shape", "quantized"])
def test_weights_that_do_not_fit(tmp_path: Path, refused, change: str) -> None:
    tensors = plain.nanogpt_weights()
    name = "transformer.h.1.mlp.c_proj.weight"
    match change:
        case "missing":
            del tensors[name]
            told = "blocks.1.mlp.down.weight is missing"
        case "left over":
            tensors["transformer.h.1.attn.sinks.weight"] = torch.ones(4)
            told = "parts that Sparrow's model lacks: transformer.h.1.attn.sinks.weight"
        case "shape":
            tensors[name] = tensors[name][:, 1:]
            told = "blocks.1.mlp.down.weight is (24, 95) and must be (24, 96)"
        case _:
            tensors[name] = tensors[name].to(torch.int8)
            told = "holds blocks.1.mlp.down.weight as int8"
    torch.save(tensors, tmp_path / "ckpt.pt")
    assert told in refused("ckpt.pt", "--n-heads", "6")


@pytest.mark.parametrize("odd", ["name", [1], 3, None, {"n_heads": "six"}])
def test_settings_of_another_kind(tmp_path: Path, refused, odd: object) -> None:
    content = {"model": plain.llama2c_weights(shared=True), "config": odd, "step": "last"}
    torch.save(content, tmp_path / "ckpt.pt")
    assert "--n-heads" in refused("ckpt.pt")


@pytest.mark.parametrize("option", ["--rope-theta=-1", "--norm-eps=nan", "--max-seq-len=-4"])
def test_an_option_outside_its_limits(tmp_path: Path, refused, option: str) -> None:
    torch.save(plain.minimind_weights(qk_norm=True, head_dim=6), tmp_path / "ckpt.pt")
    assert "must be a number above zero" in refused("ckpt.pt", option)


@pytest.mark.parametrize(
    "setting", ['"rms_norm_eps": -1', '"rms_norm_eps": NaN', '"rms_norm_eps": Infinity',
                '"rope_theta": -1', '"rope_theta": Infinity', '"max_position_embeddings": -3']
)  # fmt: skip
def test_a_setting_outside_its_limits(tmp_path: Path, refused, setting: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text(f"{LLAMA[:-1]}, {setting}}}")
    tensors = {"model.embed_tokens.weight": torch.ones(9, 8)}
    torch.save(tensors, tmp_path / "folder" / "pytorch_model.bin")
    assert "must be" in refused("folder")


@pytest.mark.parametrize("step", [1e300, -5, float("nan")])
def test_a_step_that_none_can_be(tmp_path: Path, step: float) -> None:
    torch.save({"model": plain.nanogpt_weights(), "iter_num": step}, tmp_path / "ckpt.pt")
    adopt(tmp_path / "ckpt.pt", tmp_path / "run", Asked(n_heads=6))
    assert find_run(tmp_path / "run")[1] == 1


def test_heads_that_do_not_divide(tmp_path: Path, refused) -> None:
    torch.save(plain.nanogpt_weights(), tmp_path / "ckpt.pt")
    assert "does not divide" in refused("ckpt.pt", "--n-heads", "7")


def test_a_vocabulary_larger_than_the_table(tmp_path: Path, refused) -> None:
    torch.save(plain.nanogpt_weights(), tmp_path / "ckpt.pt")
    options = ("--n-heads", "6", "--tokenizer", "bytes")
    assert "61 is below the tokenizer's 257" in refused("ckpt.pt", *options)


def test_an_option_for_another_project(tmp_path: Path, refused) -> None:
    torch.save(plain.nanogpt_weights(), tmp_path / "ckpt.pt")
    assert "--rope-theta" in refused("ckpt.pt", "--rope-theta", "1e4")


def test_nan_is_told(tmp_path: Path) -> None:
    tensors = plain.pile_weights(projection=True)
    tensors["lm_head.bias"][3] = math.nan
    torch.save({"model_state_dict": tensors}, tmp_path / "ckpt.pt")
    done = adopt(tmp_path / "ckpt.pt", tmp_path / "run", Asked())
    assert any("NaN or infinity in head.bias" in note for note in done.notes)


@pytest.mark.parametrize("change", [-4, 4])
def test_a_bin_of_another_length(tmp_path: Path, refused, change: int) -> None:
    shape = struct.pack("<7i", 8, 16, 1, 2, 2, 11, 8)
    body = 11 * 8 + 8 + 4 * 64 + 8 + 3 * 128 + 8 + 2 * 8 * 2
    (tmp_path / "model.bin").write_bytes(shape + bytes(4 * body + change))
    assert "its header promises" in refused("model.bin")


def test_low_rank_changes_alone(tmp_path: Path, refused) -> None:
    lora = {f"{M}.self_attn.q_proj.lora.{half}.weight": torch.ones(8, 8) for half in "AB"}
    torch.save(lora, tmp_path / "lora.pth")
    told = refused("lora.pth")
    assert ".lora." in told
    assert "merge_lora" in told


@pytest.mark.parametrize("version", [3, -1])
def test_a_bin_of_an_unknown_version(tmp_path: Path, refused, version: int) -> None:
    (tmp_path / "model.bin").write_bytes(struct.pack("<Ii", 0x616B3432, version) + bytes(300))
    told = refused("model.bin")
    assert f"version {version}" in told
    assert "not known" in told
    assert "int8" not in told


def test_a_quantized_bin(tmp_path: Path, refused) -> None:
    (tmp_path / "model.bin").write_bytes(struct.pack("<Ii", 0x616B3432, 2) + bytes(300))
    assert "version 2" in refused("model.bin")
