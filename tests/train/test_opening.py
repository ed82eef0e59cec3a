"""Opening what a recipe names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sparrowlm.config import DataConfig
from sparrowlm.pipeline import plan_recipe
from sparrowlm.train.opening import dataset_of
from support import byte_dataset, cpu, quick, tiny_recipe


def test_a_prepared_dataset_may_lie_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch, tmp_path)
    dataset = byte_dataset(tmp_path / "data")
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = replace(tiny_recipe(), data=DataConfig(path=("~/data",)))
    assert dataset_of(recipe, cpu()).fingerprint == dataset.fingerprint
    assert plan_recipe(recipe)[2]
