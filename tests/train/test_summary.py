"""What a finished run says of itself, and which step is its best."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sparrowlm.checkpoint import RunFolder
from sparrowlm.config import Recipe
from sparrowlm.pipeline import train
from sparrowlm.train.trainer import Trainer
from support import Silent, byte_dataset, quick, tiny_recipe


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch) -> Recipe:
    quick(monkeypatch, tmp_path)
    byte_dataset(tmp_path / "data")
    recipe = tiny_recipe(steps=3)
    return replace(
        recipe,
        data=replace(recipe.data, path=(str(tmp_path / "data"),)),
        eval=replace(recipe.eval, every="1 steps"),
    )


def measured(monkeypatch, *losses: float) -> None:
    """Let the held-out split be found to cost this, one after the other."""
    found = iter(losses)
    monkeypatch.setattr("sparrowlm.train.sitting.measure", lambda *_: {"val_loss": next(found)})


def test_a_loss_of_exactly_zero_is_the_best_there_is(recipe, tmp_path, monkeypatch):
    measured(monkeypatch, 1.0, 0.0, 0.5)
    summary = train(recipe, tmp_path / "run", Silent())
    assert summary is not None
    assert summary["val_loss"] == 0.0
    state = RunFolder(tmp_path / "run").load(3).state
    assert (state.best_step, state.best_val_loss) == (2, 0.0)


def test_steps_whose_loss_is_zero_count(recipe, tmp_path, monkeypatch):
    steps = Trainer._one_step

    def costless(trainer: Trainer):
        metrics, tokens, norm = steps(trainer)
        return metrics | {"loss": (0.0, 128.0)}, tokens, norm

    monkeypatch.setattr(Trainer, "_one_step", costless)
    summary = train(recipe, tmp_path / "run", Silent())
    assert summary is not None
    assert summary["train_loss"] == 0.0


def test_the_whole_split_counts_as_it_is_at_the_end(recipe, tmp_path, monkeypatch):
    """Not where a run that was made longer ended before, even if it was better there."""
    every = replace(recipe.eval, every="", windows=1, whole_at_end=True)
    recipe = replace(recipe, eval=every)
    measured(monkeypatch, 2.0, 1.0, 4.0, 3.0)
    assert (train(recipe, tmp_path / "run", Silent()) or {})["val_loss"] == 1.0
    longer = replace(recipe, train=replace(recipe.train, length="5 steps"))
    summary = train(longer, tmp_path / "run", Silent(), resume=True)
    assert summary is not None
    assert summary["val_loss"] == 3.0
