"""What may change when a run goes on, and what a damaged folder does to it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparrowlm.checkpoint import Checkpoint, RunFolder, State
from sparrowlm.config import Recipe
from sparrowlm.data.shards import Dataset
from sparrowlm.errors import RunError
from sparrowlm.pipeline import train
from sparrowlm.train.build import resolve_recipe
from sparrowlm.train.resume import resume_point
from sparrowlm.train.trainer import LOSS_SCALE_START
from support import Silent, byte_dataset, cpu, quick, tiny_recipe


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch) -> Dataset:
    quick(monkeypatch, tmp_path)
    return byte_dataset(tmp_path / "data")


@pytest.fixture
def recipe(dataset: Dataset, tmp_path: Path) -> Recipe:
    recipe = tiny_recipe(steps=4)
    return replace(
        recipe,
        data=replace(recipe.data, path=(str(tmp_path / "data"),)),
        checkpoint=replace(recipe.checkpoint, every="2 steps"),
    )


@pytest.fixture
def run(recipe: Recipe, tmp_path: Path) -> RunFolder:
    """Stopped after two of four steps."""
    asked = iter([False, True])
    train(recipe, tmp_path / "run", Silent(), should_stop=lambda: next(asked, True))
    assert RunFolder(tmp_path / "run").newest() == 2
    return RunFolder(tmp_path / "run")


def point(
    run: RunFolder, recipe: Recipe, dataset: Dataset, precision: str = "float32"
) -> tuple[State, list[str]]:
    """Where `recipe` would go on, and what is told."""
    runtime = cpu(precision)
    found, told = resume_point(run, resolve_recipe(recipe, 256, runtime), dataset, runtime)
    assert found is not None
    return found.state, told


def with_rows(recipe: Recipe, size: int) -> Recipe:
    return replace(recipe, train=replace(recipe.train, micro_batch_size=size))


def saved_again(run: RunFolder, **changes: object) -> None:
    """Its newest checkpoint with another state."""
    newest = run.load(run.newest())
    run.save(replace(newest, state=replace(newest.state, **changes)), keep_last=2)


def test_another_micro_batch_size_is_taken_where_one_is_asked_for(run, recipe, dataset):
    state, told = point(run, with_rows(recipe, 4), dataset)
    assert state.micro_batch_size == 4
    assert "train.micro_batch_size was 8 and is now 4" in told


def test_a_micro_batch_that_memory_has_halved_stays_halved(run, recipe, dataset):
    saved_again(run, micro_batch_size=2)
    state, told = point(run, recipe, dataset)
    assert state.micro_batch_size == 2
    assert told == ["resumed at step 2"]


def test_a_micro_batch_left_to_memory_is_that_of_the_run(run, recipe, monkeypatch):
    """There may be more or less of it today, and other micro-batches add up to other last bits."""
    monkeypatch.setattr("sparrowlm.train.build.fitting_rows", lambda *_: 3)
    train(with_rows(recipe, 0), run.path, Silent(), resume=True)
    assert run.load(4).state.micro_batch_size == 8
    assert run.recipe().train.micro_batch_size == 8


def test_another_number_of_threads_is_told_and_kept(run, recipe, dataset):
    saved_again(run, threads=7)
    state, told = point(run, recipe, dataset)
    assert state.threads == torch.get_num_threads()
    assert told[1].startswith(f"on {torch.get_num_threads()} threads, before on 7")


@pytest.mark.parametrize(("begun", "now"), [("muon", "adamw"), ("adamw", "muon")])
def test_the_other_optimizer_is_refused_and_nothing_is_written(recipe, tmp_path, begun, now):
    first, second = (replace(recipe, optim=replace(recipe.optim, name=x)) for x in (begun, now))
    train(first, tmp_path / "run", Silent())
    before = (tmp_path / "run" / "config.toml").read_bytes()
    with pytest.raises(RunError, match=f"was trained with optimizer {begun}") as fault:
        train(second, tmp_path / "run", Silent(), resume=True)
    assert "architecture" not in str(fault.value)
    assert "init.from" in str(fault.value)
    assert (tmp_path / "run" / "config.toml").read_bytes() == before


def test_float16_starts_its_loss_scale_where_a_run_had_none(run, recipe, dataset):
    assert point(run, recipe, dataset, "float16")[0].loss_scale == LOSS_SCALE_START
    assert point(run, recipe, dataset, "bfloat16")[0].loss_scale == 1.0
    saved_again(run, loss_scale=512.0)
    assert point(run, recipe, dataset, "float16")[0].loss_scale == 512.0


def test_before_its_first_step_a_run_may_become_another(recipe, tmp_path):
    run = tmp_path / "run"
    train(recipe, run, Silent())
    for step in RunFolder(run).steps():
        (RunFolder(run).folder(step)).rename(tmp_path / f"gone-{step}")
    display = Silent()
    other = replace(recipe, model=replace(recipe.model, d_ff=32))
    train(other, run, display, resume=True)
    assert RunFolder(run).recipe().model.d_ff == 32
    assert "model.d_ff was 64 and is now 32" in display.events
    assert "no checkpoint yet: starting again from step 0" in display.events


def test_a_log_that_was_lost_begins_anew(run, recipe):
    (run.path / "metrics.jsonl").unlink()
    (run.path / "samples.jsonl").unlink()
    train(recipe, run.path, Silent(), resume=True)
    rows = list(run.rows("metrics.jsonl"))
    assert [row["step"] for row in rows if row["kind"] == "train"] == [3, 4]
    json.loads((run.path / "summary.json").read_text("utf-8"))


def test_what_is_saved_behind_a_damaged_checkpoint_stays(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.create()
    for step in (200, 400):
        run.save(Checkpoint(State(step=step), {"w": torch.ones(1)}, {}), keep_last=2)
    (run.folder(400) / "model.safetensors").write_bytes(b"damaged")
    assert run.newest() == 200
    run.save(Checkpoint(State(step=300), {"w": torch.ones(1)}, {}), keep_last=1)
    assert run.newest() == 300
    run.save(Checkpoint(State(step=400), {"w": torch.ones(1)}, {}), keep_last=1)
    assert run.steps() == [400]
    assert run.newest() == 400
