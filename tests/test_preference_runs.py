"""Preferences, reward models and students from files to a run folder, by their recipes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparrowlm.checkpoint import RunFolder
from sparrowlm.config import LoraConfig, dump_recipe
from sparrowlm.pipeline import train
from stage_support import run, shrunk, write_files
from support import Silent, measured_again, quick, run_ranks, same_results


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Iterator[dict[str, Path]]:
    """Data of every kind, and a run with a vocabulary of chats."""
    folder = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        quick(patch, folder)
        yield write_files(folder)


def first_of(rows, kind):
    """The first row of a kind: before it may come events and what a run starts from."""
    return next(row for row in rows if row["kind"] == kind)


@pytest.mark.parametrize(
    ("name", "data", "loss"),
    [
        ("dpo", "pairs", "sigmoid"),
        ("dpo", "pairs", "kto"),
        ("dpo", "labelled", "kto"),
        ("dpo", "pairs", "simpo"),
        ("reward", "pairs", "sigmoid"),
    ],
)
def test_recipes_of_preferences_train_when_shrunk(files, tmp_path, name, data, loss) -> None:
    rows = run(shrunk(name, files, data, preference={"loss": loss}), tmp_path / "run")
    first = {"sigmoid": math.log(2), "kto": 0.5}.get(loss)
    if first is not None:
        assert first_of(rows, "train")["loss"] == pytest.approx(first, abs=1e-3)
        assert first_of(rows, "eval")["step"] == 0
        assert first_of(rows, "eval")["val_loss"] == pytest.approx(first, abs=1e-3)
    measured = [row for row in rows if row["kind"] == "eval"]
    assert all(0 <= row["val_accuracy"] <= 1 for row in measured)
    assert all(("val_margin" in row) == (data == "pairs") for row in measured)
    assert RunFolder(tmp_path / "run").best()
    assert (tmp_path / "run" / "reference").is_dir() == (name == "dpo" and loss != "simpo")
    held = RunFolder(tmp_path / "run").load(6).trainer
    assert ("objective/head.weight" in held) == (name == "reward")
    best = min(measured, key=lambda row: row["val_loss"])
    again = measured_again(tmp_path / "run")
    for key in again:
        assert again[key] == pytest.approx(best[f"val_{key}"], abs=1e-5)


def test_the_recipe_of_students_trains_when_shrunk(files, tmp_path) -> None:
    rows = run(shrunk("distill", files, "text"), tmp_path / "run")
    (*_, last) = [row for row in rows if row["kind"] == "eval"]
    assert last["val_bits_per_byte"] > 0
    assert last["val_divergence"] > 0
    assert last["val_cross_entropy"] > 0
    again = measured_again(tmp_path / "run")
    assert again["cross_entropy"] == pytest.approx(last["val_cross_entropy"], rel=1e-5)
    recipe = RunFolder(tmp_path / "run").recipe()
    assert recipe.model.vocab_size == RunFolder(files["base"]).recipe().model.vocab_size
    assert recipe.model.d_model == 16


def test_adapters_learn_preferences_beside_the_reference_that_they_start_from(
    files, tmp_path
) -> None:
    recipe = shrunk("dpo", files, "pairs")
    rows = run(replace(recipe, lora=LoraConfig(rank=2)), tmp_path / "run")
    before = first_of(rows, "train")["loss"]
    assert before == pytest.approx(math.log(2), abs=1e-4)
    assert rows[-1]["val_loss"] != before
    held = RunFolder(tmp_path / "run").load(6).model
    assert held
    assert all("lora" in name for name in held)


def test_a_resumed_run_keeps_what_its_reference_said(files, tmp_path) -> None:
    recipe = shrunk("dpo", files, "pairs", preference={"loss": "kto"})
    run(recipe, tmp_path / "straight")
    half = tmp_path / "half"
    steps = iter(range(9))
    assert train(recipe, half, Silent(), should_stop=lambda: next(steps) == 2) is None  # pyright: ignore[reportArgumentType]
    assert RunFolder(half).steps()[-1] == 3
    run(recipe, half, resume=True)
    same_results(tmp_path / "straight", half)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["sigmoid", "kto"])
def test_two_ranks_equal_one(files, tmp_path, loss) -> None:
    recipe = shrunk("dpo", files, "pairs", preference={"loss": loss})
    recipe = replace(recipe, train=replace(recipe.train, precision="float64"))
    path = tmp_path / "recipe.toml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    for ranks in (1, 2):
        done = run_ranks("train", path, "--out", tmp_path / f"run{ranks}", ranks=ranks)
        assert done.returncode == 0, done.stdout + done.stderr
    one, two = (RunFolder(tmp_path / f"run{ranks}").load(6).model for ranks in (1, 2))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-10)
