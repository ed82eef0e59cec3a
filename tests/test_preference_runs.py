"""Preferences, reward models and students from files to a run folder, by their recipes."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparrowlm.checkpoint import RunFolder
from sparrowlm.config import (
    InitConfig,
    LoraConfig,
    ModelConfig,
    Recipe,
    TokenizerConfig,
    dump_recipe,
)
from sparrowlm.errors import RunError
from sparrowlm.pipeline import train
from stage_support import SEQ_LEN, only_adapters_moved, run, shrunk, write_files
from support import TINY, Silent, measured_again, quick, run_ranks, same_results


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


def stopped_after(steps: int):
    left = iter(range(steps - 1))
    return lambda: next(left, None) is None


@pytest.mark.parametrize(("name", "data"), [("reward", "pairs"), ("distill", "text")])
def test_judges_and_students_resume_exactly(files, tmp_path, name, data) -> None:
    recipe = shrunk(name, files, data)
    run(recipe, tmp_path / "straight")
    half = tmp_path / "half"
    assert train(recipe, half, Silent(), should_stop=stopped_after(4)) is None  # pyright: ignore[reportArgumentType]
    assert RunFolder(half).steps()[-1] == 4
    run(recipe, half, resume=True)
    same_results(tmp_path / "straight", half)


def test_a_student_that_is_adapted_changes_its_adapters_alone(files, tmp_path) -> None:
    recipe = shrunk("distill", files, "text", lora={"rank": 2}, init={"from_": str(files["base"])})
    run(replace(recipe, model=ModelConfig()), tmp_path / "run")
    only_adapters_moved(tmp_path / "run", files["base"])


def test_a_teacher_that_was_trained_on_is_asked_as_it_was(files, tmp_path) -> None:
    """Its best step is another one now; a run that goes on asks the one that it began with."""
    teacher = tmp_path / "teacher"
    shutil.copytree(files["base"], teacher)
    recipe = shrunk("distill", files, "text", distill={"teacher": str(teacher)})
    run(recipe, tmp_path / "straight")
    half = tmp_path / "half"
    assert train(recipe, half, Silent(), should_stop=stopped_after(4)) is None  # pyright: ignore[reportArgumentType]
    folder, began = RunFolder(teacher), RunFolder(teacher).best()
    better = folder.load(began)
    for tensor in better.model.values():
        tensor.add_(0.1)
    folder.save(replace(better, state=replace(better.state, step=99, best_step=99)), keep_last=9)
    assert folder.best() == 99
    shutil.copytree(half, tmp_path / "refused")
    run(recipe, half, resume=True)
    same_results(tmp_path / "straight", half)
    measured = RunFolder(half).rows("metrics.jsonl")
    last = [row for row in measured if row["kind"] == "eval"][-1]
    assert measured_again(half)["divergence"] == pytest.approx(last["val_divergence"], rel=1e-5)

    shutil.rmtree(folder.folder(began))
    told = rf"distill.teacher, .*: step {began} is gone(?s:.*)distill.teacher = \".*step-00000099\""
    with pytest.raises(RunError, match=told):
        run(recipe, tmp_path / "refused", resume=True)
    folder.save(replace(better, state=replace(better.state, step=began)), keep_last=9)
    with pytest.raises(RunError, match=rf"step {began} is another one now"):
        run(recipe, tmp_path / "refused", resume=True)
    other = replace(recipe, distill=replace(recipe.distill, teacher=str(folder.folder(99))))
    run(other, tmp_path / "refused", resume=True)


def test_a_run_that_asks_nobody_keeps_no_record_of_it(files, tmp_path) -> None:
    run(shrunk("reward", files, "pairs"), tmp_path / "run")
    assert not (tmp_path / "run" / "asked.json").exists()


def beginning(files: dict[str, Path], name: str, tied: bool) -> Recipe:
    """A recipe of pairs or text that starts from random weights, so that their shape is free."""
    recipe = shrunk(name, files, "text" if name == "distill" else "pairs")
    if name == "distill":
        return recipe
    model = replace(TINY, vocab_size=0, max_seq_len=SEQ_LEN, tie_embeddings=tied)
    tokenizer = TokenizerConfig(kind="folder", path=str(files["base"] / "tokenizer"))
    return replace(recipe, init=InitConfig(), model=model, tokenizer=tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["sigmoid", "kto"])
def test_two_ranks_equal_one(files, tmp_path, loss) -> None:
    equal_on_two_ranks(shrunk("dpo", files, "pairs", preference={"loss": loss}), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tied"), [("reward", True), ("reward", False), ("distill", True)])
def test_two_ranks_of_judges_and_students_equal_one(files, tmp_path, name, tied) -> None:
    equal_on_two_ranks(beginning(files, name, tied), tmp_path)


def equal_on_two_ranks(recipe: Recipe, tmp_path: Path) -> None:
    recipe = replace(recipe, train=replace(recipe.train, precision="float64"))
    path = tmp_path / "recipe.toml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    for ranks in (1, 2):
        done = run_ranks("train", path, "--out", tmp_path / f"run{ranks}", ranks=ranks)
        assert done.returncode == 0, done.stdout + done.stderr
    one, two = (RunFolder(tmp_path / f"run{ranks}").load(6).model for ranks in (1, 2))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-10)
