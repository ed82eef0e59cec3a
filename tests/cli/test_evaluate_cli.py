"""`sparrow evaluate`: what a person sees, and what a machine reads."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lora_support import text_recipe
from sparrowlm.cli import main
from sparrowlm.cli.evaluate import warnings_of
from sparrowlm.evaluate.figures import Measured
from sparrowlm.pipeline import train
from support import Silent

FLAGS = ("--device", "cpu", "--precision", "float32")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short runs on the same text."""
    folder = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARROW_CACHE", str(folder / "cache"))
        patch.setattr("sparrowlm.pipeline.matmul_rate", lambda *_: 1e11)
        for number, name in enumerate(("one", "two")):
            recipe = text_recipe(folder, steps=4 + 4 * number)
            samples = replace(recipe.samples, prompts=("def ",), temperature=0.7)
            train(replace(recipe, samples=samples), folder / name, Silent())
    return folder


@pytest.fixture(autouse=True)
def _cache(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARROW_CACHE", str(runs / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


def test_two_runs_beside_each_other(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["evaluate", str(runs / "one"), str(runs / "two"), *FLAGS,
                 "--json", str(runs / "out" / "figures.json")])  # fmt: skip
    told = capsys.readouterr()
    assert code == 0, told.err
    found = json.loads((runs / "out" / "figures.json").read_text(encoding="utf-8"))["runs"]
    assert [Path(one["run"]).name for one in found] == ["one", "two"]
    for one in found:
        [held_out] = one["measured"]
        summary = json.loads((Path(one["run"]) / "summary.json").read_text(encoding="utf-8"))
        loss = held_out["figures"]["loss"]
        assert loss["value"] == pytest.approx(summary["val_loss"], rel=1e-6)
        assert loss["value"] == loss["sum"] / loss["count"]
        assert f"{loss['value']:.4f}" in told.out
    assert "windows of 16 side by side" in told.out
    assert "different" not in told.out


def test_columns_that_do_not_compare_are_told_of() -> None:
    def run(data: str, tokenizer: str) -> dict[str, object]:
        return {"tokenizer": tokenizer, "measured": [Measured("held out", "", {}, data=data)]}

    assert warnings_of([run("a", "b"), run("a", "b")]) == []
    [data, vocabulary] = warnings_of([run("a", "b"), run("c", "d")])
    assert "--data FILE" in data
    assert "bits_per_byte" in vocabulary


def test_everything_at_once(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "chars.toml").write_text('prompt = "{p}"', encoding="utf-8")
    rows = [{"p": "def ", "choices": ["main", "(()"], "gold": 0}] * 3
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (runs / "chars.jsonl").write_text(lines, encoding="utf-8")
    code = main(["evaluate", str(runs / "two"), *FLAGS, "--data", str(runs / "source.txt"),
                 "--windows", "20", "--stride", "8", "--task", str(runs / "chars.toml"),
                 "--limit", "2", "--samples", "2", "--sample-tokens", "5"])  # fmt: skip
    told = capsys.readouterr()
    assert code == 0, told.err
    for line in (
        "source.txt",
        "bits_per_byte",
        "chars",
        "accuracy_norm",
        "what it writes",
        "distinct-3",
        "20 evenly spread windows of 16, 8 apart",
        "2 rows, 0 shots",
    ):
        assert line in told.out
    assert "held out" not in told.out


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--task", "nothing"], "no such task"),
        (["--data", "nothing.txt"], "nothing.txt"),
        (["--stride", "99"], "--stride 99: must be 1 to 16"),
        (["--seq-len", "99"], "--seq-len 99: the model's context is 16"),
        (["--harness", "hellaswag", "--harness-tasks", "nowhere"], "no such folder"),
    ],
)
def test_a_mistake_is_one_message(
    runs: Path, options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(runs / "one"), *FLAGS, *options]) == 2
    assert told in capsys.readouterr().err


def test_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate"]) == 2
    assert "no run is named" in capsys.readouterr().err


def test_the_extra_is_named(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "lm_eval", raising=False)
    assert main(["evaluate", str(runs / "one"), *FLAGS, "--harness", "hellaswag"]) == 2
    assert 'pip install "sparrowlm[harness]"' in capsys.readouterr().err
