"""Opening what a recipe names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sparrowlm.config import DataConfig, TokenizerConfig
from sparrowlm.pipeline import plan_recipe, train
from sparrowlm.train.opening import dataset_of
from support import Silent, byte_dataset, cpu, quick, tiny_recipe, with_model


def test_a_prepared_dataset_may_lie_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch, tmp_path)
    dataset = byte_dataset(tmp_path / "data")
    for home in ("HOME", "USERPROFILE"):  # the second on Windows
        monkeypatch.setenv(home, str(tmp_path))
    recipe = replace(tiny_recipe(), data=DataConfig(path=("~/data",)))
    assert dataset_of(recipe, cpu()).fingerprint == dataset.fingerprint
    assert plan_recipe(recipe)[2]


def test_rows_that_are_skipped_are_told_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch, tmp_path)
    rows = [f'{{"text": "row {number} of the moon"}}\n' for number in range(20)]
    (tmp_path / "a.jsonl").write_text("".join(rows) + '{"other": 1}\n' * 180)
    data = DataConfig(path=(str(tmp_path / "a.jsonl"),), skip_bad=True)
    recipe = replace(with_model(tiny_recipe(steps=1), vocab_size=257), data=data)
    shown = Silent()
    train(replace(recipe, tokenizer=TokenizerConfig(kind="bytes")), tmp_path / "run", shown)  # pyright: ignore[reportArgumentType]
    (told,) = [event for event in shown.events if "rejected" in event]
    count, _, listed = told.partition(": ")
    assert count == "180 of 200 rows rejected"
    assert Path(listed).read_text().count("\n") == 180
