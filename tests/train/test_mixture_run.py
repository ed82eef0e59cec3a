"""A small run on two sources: resume, the log by source, and the weighted held-out loss."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sparrowlm.checkpoint import RunFolder
from sparrowlm.config import MixConfig, dump_recipe, load_recipe
from sparrowlm.data.mixture import join, named_mix
from sparrowlm.data.shards import open_dataset
from sparrowlm.errors import DataError
from sparrowlm.pipeline import train
from sparrowlm.runtime import detect
from sparrowlm.train.measure import weighted
from sparrowlm.train.stages import Scene, token_stream
from support import Silent, quick, same_results, tiny_recipe, with_model, write_recipe


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch):
    """Two folders of bytes: Python's source by weight 3, and a counting of numbers by 1."""
    quick(monkeypatch, tmp_path)
    write_recipe(tmp_path)
    folder = tmp_path / "numbers"
    folder.mkdir()
    text = " ".join(map(str, range(3000))).encode()
    for name, part in (("train", text[:9000]), ("val", text[9000:10000])):
        np.frombuffer(part, np.uint8).astype("<u2").tofile(folder / f"{name}.bin")
    mix = (
        MixConfig((str(tmp_path / "data"),), 3.0, "code"),
        MixConfig((str(folder),), 1.0, "numbers"),
    )
    recipe = with_model(tiny_recipe(steps=12), vocab_size=257)
    recipe = replace(recipe, data=replace(recipe.data, mix=mix))
    return replace(recipe, tokenizer=replace(recipe.tokenizer, kind="bytes"))


def rows_of(run: Path, kind: str) -> list[dict[str, float]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def test_a_run_on_a_mixture_resumes_and_tells_of_each_source(recipe, tmp_path: Path) -> None:
    path = tmp_path / "mix.toml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    train(recipe, straight, Silent())
    asked = iter([False] * 5)
    assert train(recipe, stopped, Silent(), should_stop=lambda: next(asked, True)) is None
    summary = train(recipe, stopped, Silent(), resume=True)
    same_results(straight, stopped)

    for row in rows_of(straight, "train"):
        own = row["tokens/code"], row["tokens/numbers"]
        assert sum(own) == row["tokens"]
        assert abs(own[0] - 0.75 * row["tokens"]) < 16
    last = rows_of(straight, "eval")[-1]
    mean = 0.75 * last["val_loss/code"] + 0.25 * last["val_loss/numbers"]
    assert last["val_loss"] == pytest.approx(mean, rel=1e-12)
    assert summary is not None
    assert summary["gzip_bits_per_byte"] is None
    sources = summary["sources"]
    assert sources["code"]["tokens"] == 12 * 128 * 3 // 4
    assert sources["numbers"]["passes"] == pytest.approx(12 * 128 / 4 / 9000, abs=1e-3)
    assert RunFolder(straight).recipe().data.mix == recipe.data.mix


def test_weighted_sums_of_one_source_are_its_means() -> None:
    own = {"loss": (30.0, 12.0), "bits_per_byte": (44.0, 20.0)}
    found = weighted({"a": own, "b": {}}, {"a": 7.0, "b": 1.0})
    for name, (value, count) in own.items():
        assert found[name][0] / found[name][1] == pytest.approx(value / count, rel=1e-12)


def test_a_source_with_too_few_tokens_is_named(recipe, tmp_path: Path) -> None:
    (tmp_path / "numbers" / "train.bin").write_bytes(b"a\0b\0")
    mix = named_mix(recipe.data)
    mixture = join(mix, [open_dataset(Path(entry.path[0])) for entry in mix])
    with pytest.raises(DataError, match=r"source 'numbers': 2 tokens do not fill one row"):
        token_stream(Scene(recipe, mixture, detect("cpu")))
