"""A run's own figure, measured again from its folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_support import lora_recipe, text_recipe
from sparrowlm.checkpoint import find_run
from sparrowlm.config import MixConfig, Recipe, TokenizerConfig
from sparrowlm.errors import ConfigError, RunError
from sparrowlm.evaluate.corpus import Reading
from sparrowlm.pipeline import load_run, train
from sparrowlm.train.held_out import held_out
from support import Silent, tiny_recipe, with_model


@pytest.fixture(autouse=True)
def _quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARROW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sparrowlm.pipeline.matmul_rate", lambda *_: 1e11)


WHOLE = Reading()


def again(run: Path, reading: Reading = WHOLE) -> dict[str, dict[str, float | None]]:
    """{what was measured: {figure: value}}."""
    loaded = load_run(run, "cpu", "float32")
    found = held_out(find_run(run)[0], loaded.step, loaded.model, loaded.runtime, reading)
    return {one.name: {key: figure.value for key, figure in one.figures.items()} for one in found}


def logged(run: Path, kind: str = "eval") -> dict[str, Any]:
    """The best measurement in a run's log."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] == kind]
    return min(rows, key=lambda row: row["val_loss"])


def with_chats(folder: Path) -> Recipe:
    """Sums as chats."""
    rows = [
        [
            {"role": "user", "content": f"{a}+{b}?"},
            {"role": "assistant", "content": f"It is {a + b}."},
        ]
        for a in range(10)
        for b in range(4)
    ]
    file, text = folder / "chats.jsonl", folder / "text.txt"
    file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows), "utf-8")
    text.write_text((json.__doc__ or "") * 2, "utf-8")
    recipe = with_model(tiny_recipe(steps=6), vocab_size=320, max_seq_len=48)
    return replace(
        recipe,
        stage="sft",
        tokenizer=TokenizerConfig(vocab_size=320),
        data=replace(
            recipe.data, path=(str(file),), val_fraction=0.3, replay=(str(text),), replay_share=0.25
        ),
        train=replace(recipe.train, seq_len=48, batch_tokens=8 * 48, micro_batch_size=4),
    )


def test_pretraining_whole_and_in_windows(tmp_path: Path) -> None:
    recipe = text_recipe(tmp_path)
    recipe = replace(recipe, eval=replace(recipe.eval, windows=5, whole_at_end=True))
    train(recipe, tmp_path / "run", Silent())
    whole, some = again(tmp_path / "run"), again(tmp_path / "run", Reading(windows=5))
    for found, kind in ((whole, "eval_whole"), (some, "eval")):
        row = logged(tmp_path / "run", kind)
        assert found["held out"]["loss"] == pytest.approx(row["val_loss"], rel=1e-6)
        bits = found["held out"]["bits_per_byte"]
        assert bits == pytest.approx(row["val_bits_per_byte"], rel=1e-6)
    assert whole["held out"]["loss"] != some["held out"]["loss"]


def test_chats_with_replay(tmp_path: Path) -> None:
    train(with_chats(tmp_path), tmp_path / "run", Silent())
    found, row = again(tmp_path / "run"), logged(tmp_path / "run")
    assert found["held out"]["loss"] == pytest.approx(row["val_loss"], rel=1e-6)
    replayed = found["held out, replay"]["bits_per_byte"]
    assert replayed == pytest.approx(row["val_bits_per_byte/replay"], rel=1e-6)


def test_a_mixture_and_its_sources(tmp_path: Path) -> None:
    recipe = text_recipe(tmp_path)
    (tmp_path / "other.txt").write_text((json.__doc__ or "") * 2, "utf-8")
    mix = (
        MixConfig(recipe.data.path, weight=3.0, name="code"),
        MixConfig((str(tmp_path / "other.txt"),), name="words"),
    )
    train(replace(recipe, data=replace(recipe.data, path=(), mix=mix)), tmp_path / "run", Silent())
    found, row = again(tmp_path / "run"), logged(tmp_path / "run")
    assert found["held out"]["loss"] == pytest.approx(row["val_loss"], rel=1e-6)
    assert found["held out, words"]["loss"] == pytest.approx(row["val_loss/words"], rel=1e-6)


@pytest.mark.slow
def test_a_lora_run_merged(tmp_path: Path) -> None:
    recipe = text_recipe(tmp_path)
    train(recipe, tmp_path / "base", Silent())
    train(lora_recipe(recipe, tmp_path / "base"), tmp_path / "run", Silent())
    row = logged(tmp_path / "run")
    assert again(tmp_path / "run")["held out"]["loss"] == pytest.approx(row["val_loss"], rel=1e-5)


def test_other_data_than_in_training_is_refused(tmp_path: Path) -> None:
    train(text_recipe(tmp_path), tmp_path / "run", Silent())
    source = tmp_path / "source.txt"
    source.write_text(source.read_text("utf-8")[100:], "utf-8")
    with pytest.raises(RunError, match="another dataset"):
        again(tmp_path / "run")


def test_nothing_held_out(tmp_path: Path) -> None:
    recipe = text_recipe(tmp_path)
    recipe = replace(recipe, data=replace(recipe.data, val_fraction=0.0))
    train(recipe, tmp_path / "run", Silent())
    with pytest.raises(ConfigError, match=r"held nothing out\n.*--data FILE"):
        again(tmp_path / "run")
