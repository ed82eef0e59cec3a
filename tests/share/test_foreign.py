"""Every importer against a plain forward pass of its project's mathematics, to 1e-10."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import foreign_support as plain
from sparrowlm.checkpoint import RunFolder, find_run
from sparrowlm.cli import main
from sparrowlm.config import ModelConfig, Recipe, dump_recipe
from sparrowlm.errors import ConfigError
from sparrowlm.infer.engine import Engine, Request
from sparrowlm.infer.sampling import Sampling
from sparrowlm.model.transformer import Transformer
from sparrowlm.share.adopt import Adopted, adopt
from sparrowlm.share.asked import Asked
from support import byte_dataset, cpu, tiny_recipe

IDS = torch.randint(0, plain.V, (14,), generator=torch.Generator().manual_seed(2))
Forward = Callable[[Tensor], Tensor]


def imported(run: Path) -> Transformer:
    """A run's model in float64."""
    folder, step = find_run(run)
    model = Transformer(folder.recipe().model).double().eval()
    model.load_state_dict(folder.load(step).model)
    return model


@torch.no_grad()
def check(run: Path, forward: Forward, tolerance: float = 1e-10) -> None:
    """Logits in float64, and 6 greedy tokens of the engine."""
    model = imported(run)
    want = forward(IDS)
    assert want.std() > 0.3
    got = model.logits(model(IDS[None]).hidden)[0]
    torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance)
    ids = IDS
    for _ in range(6):
        ids = torch.cat([ids, forward(ids)[-1:].argmax(-1)])
    sampling = Sampling(temperature=0.0, max_tokens=6)
    pieces = Engine(model, None, cpu("float64")).stream([Request(IDS.tolist(), sampling)])
    assert [piece.token for piece in pieces] == ids[len(IDS) :].tolist()


def wide(tensors: plain.Tensors) -> plain.Tensors:
    return {name: value.double() for name, value in tensors.items()}


def move(tmp_path: Path, content: object, asked: Asked | None = None) -> Adopted:
    """Save as its project does, and import into tmp_path / "run"."""
    torch.save(content, tmp_path / "ckpt.pt")
    return adopt(tmp_path / "ckpt.pt", tmp_path / "run", asked)


MODEL_ARGS = {"n_layer": 2, "n_head": 6, "n_embd": plain.D, "block_size": plain.T, "dropout": 0.0}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "_orig_mod.module."])
def test_nanogpt(tmp_path: Path, bias: bool, prefix: str) -> None:
    tensors = plain.nanogpt_weights(bias=bias)
    checkpoint = {
        "model": {prefix + name: value for name, value in tensors.items()},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []},
        "model_args": {**MODEL_ARGS, "bias": bias, "vocab_size": plain.V},
        "iter_num": 2000,
        "best_val_loss": torch.tensor(1.5),
        "config": {"n_head": 12, "dataset": "shakespeare_char"},
    }
    done = move(tmp_path, checkpoint)
    assert done.project == "nanoGPT"
    assert done.config.tie_embeddings
    assert find_run(tmp_path / "run")[1] == 2000
    assert done.notes == ["no tokenizer: the run cannot write text (--tokenizer, or --meta)"]
    check(tmp_path / "run", lambda ids: plain.nanogpt(wide(tensors), ids, 6))


@dataclass
class GPTConfig:
    """A configuration kept as an object, as reductions of nanoGPT do."""

    n_head: int = 4
    block_size: int = plain.T


@pytest.mark.parametrize("key", ["model", "model_state_dict", "state_dict"])
def test_reductions_of_nanogpt(tmp_path: Path, key: str) -> None:
    """An untied head, a tanh GELU that the file does not tell of, and settings as an object."""
    tensors = plain.nanogpt_weights()
    tensors["lm_head.weight"] = tensors["lm_head.weight"].roll(1, 0) + 0.1
    done = move(tmp_path, {key: tensors, "config": GPTConfig()}, Asked(mlp="gelu_tanh"))
    assert not done.config.tie_embeddings
    check(tmp_path / "run", lambda ids: plain.nanogpt(wide(tensors), ids, 4, tanh=True))


def test_settings_as_a_plain_namespace(tmp_path: Path) -> None:
    """As a script keeps what argparse gave it: the class has nothing before its last word."""
    tensors = plain.nanogpt_weights()
    move(tmp_path, {"model": tensors, "args": argparse.Namespace(n_head=6, bias=True)})
    check(tmp_path / "run", lambda ids: plain.nanogpt(wide(tensors), ids, 6))


def test_a_bare_state_dict_takes_heads_as_told(tmp_path: Path) -> None:
    tensors = plain.nanogpt_weights()
    move(tmp_path, tensors, Asked(n_heads=3))
    check(tmp_path / "run", lambda ids: plain.nanogpt(wide(tensors), ids, 3))


def test_minimind_3_tells_its_heads(tmp_path: Path) -> None:
    tensors = plain.minimind_weights(qk_norm=True, head_dim=6)
    done = move(tmp_path, tensors)
    assert (done.config.n_heads, done.config.n_kv_heads) == (8, 4)
    check(tmp_path / "run", lambda ids: plain.minimind(wide(tensors), ids, 6, eps=1e-6))


@pytest.mark.parametrize("n_heads", [0, 4])
def test_minimind_before(tmp_path: Path, n_heads: int) -> None:
    tensors = plain.minimind_weights(qk_norm=False, head_dim=4, n_heads=n_heads or 8, n_kv=2)
    done = move(tmp_path, tensors, Asked(n_heads=n_heads, rope_theta=1e4))
    assert any("8 query heads" in note for note in done.notes) is not bool(n_heads)
    forward = lambda ids: plain.minimind(wide(tensors), ids, 4, eps=1e-5, theta=1e4)  # noqa: E731
    check(tmp_path / "run", forward)


@pytest.mark.parametrize("per_token", [0, 2])
def test_minimind_with_experts(tmp_path: Path, per_token: int) -> None:
    tensors = plain.minimind_weights(qk_norm=True, head_dim=6, experts=4)
    done = move(tmp_path, tensors, Asked(experts_per_token=per_token))
    assert done.config.n_experts == 4
    taken = per_token or 1
    check(
        tmp_path / "run",
        lambda ids: plain.minimind(wide(tensors), ids, 6, eps=1e-6, per_token=taken),
    )


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("shared", [True, False])
def test_llama2c(tmp_path: Path, version: int, shared: bool) -> None:
    tensors = plain.llama2c_weights(shared=shared)
    plain.write_llama2c(tmp_path / "model.bin", tensors, version=version, shared=shared)
    done = adopt(tmp_path / "model.bin", tmp_path / "run")
    assert done.config.tie_embeddings is shared
    check(tmp_path / "run", lambda ids: plain.llama2c(wide(tensors), ids, 6))


def test_llama2c_checkpoint(tmp_path: Path) -> None:
    tensors = plain.llama2c_weights(shared=True)
    move(tmp_path, {"model": tensors, "model_args": {"n_heads": 6, "max_seq_len": plain.T}})
    check(tmp_path / "run", lambda ids: plain.llama2c(wide(tensors), ids, 6))


@pytest.mark.parametrize(("vocab_size", "theta"), [(plain.V, 1e4), (6400, 1e6)])
def test_a_bare_state_dict_with_the_names_of_two_projects(
    tmp_path: Path, vocab_size: int, theta: float
) -> None:
    """minimind before 26 April 2025 had llama2.c's names, and another rotary base."""
    tensors = plain.llama2c_weights(shared=True)
    table = tensors["output.weight"].repeat(-(-vocab_size // plain.V), 1)[:vocab_size]
    tensors["tok_embeddings.weight"] = tensors["output.weight"] = table
    done = move(tmp_path, tensors, Asked(n_heads=6))
    check(tmp_path / "run", lambda ids: plain.llama2c(wide(tensors), ids, 6, theta=theta))
    (note,) = (note for note in done.notes if "--rope-theta" in note)
    assert "minimind" in note


def test_a_base_that_was_asked_for_is_not_noted(tmp_path: Path) -> None:
    tensors = plain.llama2c_weights(shared=True)
    done = move(tmp_path, tensors, Asked(n_heads=6, rope_theta=1e6))
    check(tmp_path / "run", lambda ids: plain.llama2c(wide(tensors), ids, 6, theta=1e6))
    assert not any("--rope-theta" in note for note in done.notes)


TELLS = {
    "nanoGPT": (lambda: {"model": plain.nanogpt_weights(), "model_args": MODEL_ARGS}, "n_heads", 6),
    "llama2.c": (
        lambda: {"model": plain.llama2c_weights(shared=True), "model_args": {"n_heads": 6}},
        "n_heads",
        6,
    ),
    "llama2.c's context": (
        lambda: {
            "model": plain.llama2c_weights(shared=True),
            "model_args": {"n_heads": 6, "max_seq_len": plain.T},
        },
        "max_seq_len",
        plain.T,
    ),
    "minimind": (lambda: plain.minimind_weights(qk_norm=True, head_dim=6), "n_heads", 8),
}


@pytest.mark.parametrize("project", TELLS)
def test_what_a_file_tells_is_not_asked_for_otherwise(tmp_path: Path, project: str) -> None:
    content, name, told = TELLS[project]
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')}: .* tells that itself"):
        move(tmp_path, content(), Asked(**{name: told // 2}))
    assert not (tmp_path / "run").exists()
    move(tmp_path, content(), Asked(**{name: told}))


def test_the_header_of_a_bin_tells_its_heads(tmp_path: Path) -> None:
    tensors = plain.llama2c_weights(shared=True)
    plain.write_llama2c(tmp_path / "model.bin", tensors, version=0, shared=True)
    with pytest.raises(ConfigError, match="--n-heads"):
        adopt(tmp_path / "model.bin", tmp_path / "run", Asked(n_heads=3))


def test_a_model_without_experts_has_none_for_a_token(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--experts-per-token"):
        move(tmp_path, plain.minimind_weights(qk_norm=True, head_dim=6), Asked(experts_per_token=2))


def test_one_vocabulary_is_asked_for(tmp_path: Path) -> None:
    torch.save(plain.nanogpt_weights(), tmp_path / "ckpt.pt")
    with pytest.raises(ConfigError, match="--meta and --tokenizer"):
        adopt(tmp_path / "ckpt.pt", tmp_path / "run", tokenizer="bytes", meta=tmp_path / "meta.pkl")


@pytest.mark.parametrize("projection", [True, False])
@pytest.mark.parametrize("score_width", [0, plain.D])
def test_the_pile_trainer(tmp_path: Path, projection: bool, score_width: int) -> None:
    tensors = plain.pile_weights(projection=projection)
    content = {"model_state_dict": tensors, "optimizer_state_dict": {}, "losses": [1.0, 0.5]}
    done = move(tmp_path, content, Asked(score_width=score_width))
    assert done.config.head_bias
    # The factor on the queries is rounded to float32.
    tolerance = 1e-5 if score_width else 1e-10
    check(
        tmp_path / "run",
        lambda ids: plain.pile(wide(tensors), ids, score_width=score_width),
        tolerance,
    )


def test_the_characters_of_nanogpt_write(tmp_path: Path, capsys) -> None:
    """`meta.pkl`, and then the commands that a person types next."""
    characters = [chr(48 + number) for number in range(plain.V)]
    meta = {"vocab_size": plain.V, "itos": dict(enumerate(characters)), "stoi": {}}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    tensors = plain.nanogpt_weights()
    torch.save({"model": tensors, "model_args": MODEL_ARGS}, tmp_path / "ckpt.pt")
    run = tmp_path / "run"
    arguments = ["import", str(tmp_path / "ckpt.pt"), "--out", str(run)]
    assert main([*arguments, "--meta", str(tmp_path / "meta.pkl")]) == 0
    told = capsys.readouterr().out
    assert "nanoGPT, recognized by its tensor transformer.h.0.attn.c_attn.weight" in told
    generate = ["generate", str(run), "--prompt", characters[IDS[0]], "--temperature", "0"]
    assert main([*generate, "--max-tokens", "9", "--precision", "float32"]) == 0
    ids = IDS[:1]
    for _ in range(9):
        ids = torch.cat([ids, plain.nanogpt(tensors, ids, 6)[-1:].argmax(-1)])
    assert capsys.readouterr().out.strip() == "".join(characters[number] for number in ids)
    assert main(["report", str(run)]) == 0
    assert "nanoGPT" in (run / "report.html").read_text(encoding="utf-8")
    assert "has not finished" not in (run / "report.html").read_text(encoding="utf-8")
    assert main(arguments) == 2
    assert "holds a run already" in capsys.readouterr().err
    for resume in ([], ["--resume"]):
        assert main(["train", str(run / "config.toml"), "--out", str(run), *resume]) == 2
        told = capsys.readouterr().err
        assert "was imported from nanoGPT" in told
        assert "init.from" in told


def test_training_starts_from_an_import(tmp_path: Path) -> None:
    """`init.from`: a step of length zero leaves the weights of the import."""
    make = plain.Maker()
    tensors = plain.nanogpt_weights()
    make("wte", 256, plain.D)
    tensors["transformer.wte.weight"] = tensors["lm_head.weight"] = make.tensors["wte"]
    torch.save({"model": tensors, "model_args": MODEL_ARGS}, tmp_path / "ckpt.pt")
    done = adopt(tmp_path / "ckpt.pt", tmp_path / "run")
    byte_dataset(tmp_path / "data")
    base = tiny_recipe(steps=1)
    recipe = replace(
        base,
        model=done.config,
        data=replace(Recipe().data, path=(str(tmp_path / "data"),)),
        optim=replace(base.optim, lr=0.0),
        init=replace(base.init, from_=str(tmp_path / "run")),
    )
    (tmp_path / "recipe.toml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert main(["train", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "next")]) == 0
    first, after = RunFolder(tmp_path / "run").load(1), RunFolder(tmp_path / "next").load(1)
    assert first.model.keys() == after.model.keys()
    assert all(torch.equal(first.model[name], after.model[name]) for name in first.model)


def test_shapes_are_resolved(tmp_path: Path) -> None:
    """What is written is what a recipe's [model] may be copied from."""
    done = move(tmp_path, plain.nanogpt_weights(), Asked(n_heads=6))
    assert RunFolder(tmp_path / "run").recipe().model == done.config
    assert isinstance(done.config, ModelConfig)
    assert done.config.head_dim == 4
