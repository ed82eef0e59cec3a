"""`sparrow evaluate`: what a person sees, and what a machine reads."""

from __future__ import annotations

import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from lora_support import text_recipe
from sparrowlm.cli import main
from sparrowlm.cli.evaluate import Asked, measure_run, warnings_of
from sparrowlm.evaluate.figures import Measured
from sparrowlm.pipeline import load_run, train
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


def test_a_headerless_file_has_the_integers_of_those_trained_on(runs: Path) -> None:
    """`train.bin` says itself neither what it holds nor how wide it is."""
    config = (runs / "one" / "config.toml").read_text(encoding="utf-8")
    assert 'token_dtype = "uint16"' in config
    losses = []
    for dtype in ("uint16", "uint32"):
        run, data = runs / f"of-{dtype}", runs / f"data-{dtype}"
        shutil.copytree(runs / "one", run)
        own = config.replace('token_dtype = "uint16"', f'token_dtype = "{dtype}"')
        (run / "config.toml").write_text(own, encoding="utf-8")
        data.mkdir()
        ids = np.frombuffer((runs / "source.txt").read_bytes()[:200], np.uint8)
        for name in ("train.bin", "val.bin"):
            ids.astype(dtype).tofile(data / name)
        out = run / "figures.json"
        code = main(["evaluate", str(run), *FLAGS, "--data", str(data), "--json", str(out)])
        assert code == 0
        [one] = json.loads(out.read_text(encoding="utf-8"))["runs"][0]["measured"]
        losses.append(one["figures"]["loss"])
    assert losses[0] == losses[1]


def test_samples_are_asked_for_by_turns_where_a_model_converses(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `load_run` says, which knows of adapters and imports, and not as the base was trained."""
    asked: list[bool] = []

    def measured(*_: object, chat: bool, **__: object) -> Measured:
        asked.append(chat)
        return Measured("what it writes", "", {})

    monkeypatch.setattr("sparrowlm.evaluate.writing.measure_writing", measured)
    loaded = load_run(runs / "one", "cpu", "float32")
    for converses in (False, True):
        one = replace(loaded, converses=converses)
        measure_run(runs / "one", one, Asked(samples=1), Console(file=io.StringIO()))
    assert asked == [False, True]


def test_what_it_writes_stands_beside_what_it_held_out(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = ("--samples", "2", "--sample-tokens", "6", "--temperature", "0.3")
    assert main(["evaluate", str(runs / "one"), *FLAGS, *samples]) == 0
    told = capsys.readouterr().out
    assert "up to 6 tokens, temperature 0.3, top_k 50" in told
    assert "the held-out text itself: 2 pieces of 6 tokens, evenly over it" in told
    moved = runs / "moved"
    shutil.copytree(runs / "one", moved)
    config = (moved / "config.toml").read_text(encoding="utf-8")
    gone = config.replace("source.txt", "gone.txt")
    (moved / "config.toml").write_text(gone, encoding="utf-8")
    assert main(["evaluate", str(moved), *FLAGS, *samples]) == 0
    told = capsys.readouterr().out
    assert "distinct-3" in told
    assert "could not be read: no such file" in told


def test_tasks_of_one_name_do_not_hide_each_other(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "same.toml").write_text('prompt = "{p}"', encoding="utf-8")
    for name, gold in (("easy", 0), ("hard", 1)):
        row = json.dumps({"p": "def ", "choices": ["main", "(()"], "gold": gold})
        (runs / f"{name}.jsonl").write_text(row + "\n", encoding="utf-8")
    tasks = [f"{runs / 'same.toml'}={runs / name}.jsonl" for name in ("easy", "hard")]
    command = ["evaluate", str(runs / "one"), *FLAGS]
    assert main([*command, "--task", tasks[0], "--task", tasks[1]]) == 0
    told = capsys.readouterr().out
    assert "same=easy.jsonl" in told
    assert "same=hard.jsonl" in told
    assert main([*command, "--task", tasks[0], "--task", tasks[0]]) == 2
    assert "2 tasks have the name 'same=easy.jsonl'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--task", "nothing"], "no such task"),
        (["--task", "nothing", "--limit", "-1"], "--limit: is -1, and must be 0 or more"),
        (["--samples", "-1"], "--samples: is -1, and must be 0 or more"),
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
