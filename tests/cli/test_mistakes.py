"""A user's mistakes: each one clear message and an exit code, and nothing lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from foreign_support import nanogpt_weights
from sparrowlm.checkpoint import RunFolder
from sparrowlm.cli import main
from support import quick, run_command, write_recipe


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path, train={"length": "4 steps"}, eval={"every": "2 steps"})


def told(capsys, *arguments) -> tuple[int, str]:
    """Exit code and what was said on standard error; a traceback would fail here."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as left:  # tyro leaves by itself, with 2
        code = int(left.code or 0)
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err + shown.out
    return code, shown.err + shown.out


def test_no_such_recipe(capsys):
    code, said = told(capsys, "train", "recipes/nonesuch.toml")
    assert code == 2
    assert "nonesuch.toml: no such recipe" in said


@pytest.mark.parametrize("under", ["", "/x"])
@pytest.mark.parametrize(
    "command",
    [
        "train recipe.toml",
        "import ckpt.pt --n-heads 6",
        "data prepare recipe.toml --tokenizer bytes",
    ],
)
def test_an_out_that_is_a_file(capsys, tmp_path, monkeypatch, recipe, command, under):
    monkeypatch.chdir(tmp_path)
    Path("note").write_text("kept")
    torch.save(nanogpt_weights(), "ckpt.pt")
    code, said = told(capsys, *command.split(), "--out", f"note{under}")
    assert code == 2
    assert "note: is a file" in said or (command.startswith("data") and "note: exists" in said)
    assert Path("note").read_text() == "kept"


def test_misspelt_key_in_the_recipe(capsys, recipe):
    recipe.write_text(recipe.read_text().replace("n_layers", "n_layer"))
    code, said = told(capsys, "train", recipe)
    assert code == 2
    assert "did you mean n_layers?" in said


def test_misspelt_option(capsys, recipe):
    code, said = told(capsys, "train", recipe, "--train.lenght", "3 steps")
    assert code == 2
    assert "--train.length" in said


def test_misspelt_command(capsys):
    code, said = told(capsys, "trian")
    assert code == 2
    assert "did you mean sparrow train?" in said


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (("data", "download", "tang"), ("--files", "-1")),
        (("data", "inspect", "rows.jsonl"), ("--rows", "-1")),
        (("data", "inspect", "rows.jsonl"), ("--row-tokens", "-5")),
        (("tokenizer", "inspect", "folder"), ("--lines", "-1")),
        (("evaluate", "runs/x"), ("--limit", "-1")),
    ],
)
def test_a_count_below_zero_is_none(capsys, command, option):
    """It would be taken for one from the end."""
    code, said = told(capsys, *command, *option)
    assert code == 2
    assert f"{option[0]}: is {option[1]}, and must be" in said


def test_a_sample_is_taken_of_one_file(capsys, tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"text": "one"}\n', encoding="utf-8")
    code, said = told(
        capsys, "data", "sample", tmp_path, tmp_path / "out.jsonl", "--target-mb", "1"
    )
    assert code == 2
    assert "is 2 files, and a sample is taken of one" in said
    assert "a.jsonl" in said


def test_no_such_data(capsys, recipe, tmp_path):
    code, said = told(capsys, "train", recipe, "--data.path", tmp_path / "none.txt")
    assert code == 2
    assert "none.txt" in said


def test_empty_data(capsys, recipe, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    code, said = told(capsys, "train", recipe, "--data.path", tmp_path / "empty.txt")
    assert code == 2
    assert "empty" in said


def test_data_shorter_than_the_context(capsys, recipe, tmp_path):
    ids = np.arange(10, dtype="<u2")
    (tmp_path / "short").mkdir()
    for split in ("train", "val"):
        (tmp_path / "short" / f"{split}.bin").write_bytes(ids.tobytes())
    code, said = told(
        capsys, "train", recipe, "--out", tmp_path / "run", "--data.path", tmp_path / "short"
    )
    assert code == 2
    assert "10 tokens" in said


def test_row_longer_than_the_context(capsys, recipe, tmp_path):
    code, said = told(capsys, "train", recipe, "--out", tmp_path / "run", "--train.seq_len", "32")
    assert code == 2
    assert "train.seq_len: 32 is longer than the model's context of 16" in said


def test_vocabulary_smaller_than_the_data(capsys, recipe, tmp_path):
    line = ["train", recipe, "--out", tmp_path / "run", "--model.vocab_size", "100"]
    code, said = told(capsys, *line)
    assert code == 2
    assert "model.vocab_size 100 is below" in said


def test_batch_that_is_no_whole_number_of_rows(capsys, recipe, tmp_path):
    line = ["train", recipe, "--out", tmp_path / "run", "--train.batch_tokens", "100"]
    code, said = told(capsys, *line)
    assert code == 2
    assert "set it to 96" in said


def test_numbers_that_mean_nothing(capsys, recipe, tmp_path):
    line = ["train", recipe, "--out", tmp_path / "run", "--checkpoint.keep_last", "0"]
    code, said = told(capsys, *line, "--eval.windows", "-1")
    assert code == 2
    assert "eval.windows is -1, and must be 0 or more; checkpoint.keep_last is 0" in said
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_written_over(capsys, recipe, tmp_path):
    run = tmp_path / "run"
    assert told(capsys, "train", recipe, "--out", run)[0] == 0
    code, said = told(capsys, "train", recipe, "--out", run)
    assert code == 2
    assert "add --resume" in said
    assert RunFolder(run).newest() == 4


@pytest.mark.parametrize(
    ("option", "value", "difference"),
    [
        ("--model.d_model", "64", "model.d_model was 32 and is now 64"),
        ("--data.path", "other", "another dataset"),
    ],
)
def test_resume_refuses_another_run(capsys, recipe, tmp_path, option, value, difference):
    run = tmp_path / "run"
    assert told(capsys, "train", recipe, "--out", run)[0] == 0
    if value == "other":
        value = tmp_path / "other"
        value.mkdir()
        for split in ("train", "val"):
            content = (tmp_path / "data" / f"{split}.bin").read_bytes()
            (value / f"{split}.bin").write_bytes(content[2:] + content[:2])
    before = (run / "config.toml").read_bytes()
    code, said = told(capsys, "train", recipe, "--out", run, "--resume", option, value)
    assert code == 2
    assert difference in said
    assert (run / "config.toml").read_bytes() == before
    assert RunFolder(run).newest() == 4


def test_resume_of_nothing(capsys, recipe, tmp_path):
    code, said = told(capsys, "train", recipe, "--out", tmp_path / "none", "--resume")
    assert code == 2
    assert "holds no run to resume" in said
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "setting", ["train.length", "eval.every", "samples.every", "checkpoint.every"]
)
def test_a_length_that_is_none_is_found_before_text_is_prepared(
    capsys, recipe, tmp_path, monkeypatch, setting
):
    monkeypatch.setattr("sparrowlm.pipeline.dataset_of", pytest.fail)
    value = "1 fortnight" if setting == "train.length" else "1 epoch"
    line = ["train", recipe, "--out", tmp_path / "run", f"--{setting}", value]
    code, said = told(capsys, *line)
    assert code == 2
    assert f'{setting}: "{value}" is not a length' in said
    assert not (tmp_path / "run").exists()


def test_a_mistake_in_what_is_trained_leaves_no_run(capsys, recipe, tmp_path, monkeypatch):
    """Here documents that cannot be told apart: only the stream finds that out."""
    quick(monkeypatch, tmp_path)
    line = ["train", recipe, "--out", tmp_path / "run"]
    code, said = told(capsys, *line, "--data.document_mask")
    assert code == 2
    assert "documents cannot be told apart" in said
    assert not (tmp_path / "run").exists()
    assert told(capsys, *line)[0] == 0


@pytest.mark.parametrize(
    ("prompt", "fault"),
    [
        ("你好", "'你好' cannot be written: the vocabulary has no '你', '好'"),
        ("ab" * 9, "18 tokens"),
    ],
    ids=["vocabulary", "context"],
)
def test_a_sample_that_cannot_be_written_is_found_before_the_first_step(
    capsys, recipe, tmp_path, monkeypatch, prompt, fault
):
    quick(monkeypatch, tmp_path)
    (tmp_path / "text.txt").write_text("abcdefgh\n" * 200)
    line = ["train", recipe, "--out", tmp_path / "run", "--data.path", tmp_path / "text.txt"]
    line += ["--tokenizer.kind", "chars", "--samples.every", "2 steps", "--samples.max_tokens", "4"]
    code, said = told(capsys, *line, "--samples.prompts", prompt)
    assert code == 2
    assert "samples.prompts: " in said
    assert fault in said
    assert not (tmp_path / "run").exists()
    assert told(capsys, *line, "--samples.prompts", "ab", "")[0] == 0
    rows = list(RunFolder(tmp_path / "run").rows("samples.jsonl"))
    assert [row["prompt"] for row in rows] == ["ab", ""] * 2


def test_a_run_is_trained_by_one_process_at_a_time(capsys, recipe, tmp_path, monkeypatch):
    quick(monkeypatch, tmp_path)
    run = RunFolder(tmp_path / "run")
    line = ["train", recipe, "--out", run.path]
    with run.held():
        code, said = told(capsys, *line)
        assert code == 2
        assert "is being written by another process" in said
        assert not run.exists
    assert told(capsys, *line)[0] == 0
    half_written = run.checkpoints / ".tmp-step-00000006-abcdefgh"
    half_written.mkdir()
    run.append("metrics.jsonl", {"kind": "event"})
    log = (run.path / "metrics.jsonl").read_bytes()
    with run.held():
        code, said = told(capsys, *line, "--resume", "--train.length", "6 steps")
        assert code == 2
        assert f"{run.path}: is being written by another process" in said
        assert half_written.is_dir()
        assert (run.path / "metrics.jsonl").read_bytes() == log
    assert told(capsys, *line, "--resume", "--train.length", "6 steps")[0] == 0
    assert run.newest() == 6


def test_weights_of_another_vocabulary_are_not_started_from(capsys, recipe, tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{name} {i}" for i in range(2000)))
    learned = ["train", recipe, "--tokenizer.kind", "bpe", "--tokenizer.vocab_size", "300"]
    learned += ["--model.vocab_size", "0", "--data.path"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert told(capsys, *learned, f"{one}.txt", "--out", one)[0] == 0
    code, said = told(capsys, *learned, f"{two}.txt", "--out", two, "--init.from", one)
    assert code == 2
    assert "another vocabulary" in said
    assert str(one / "tokenizer") in said
    assert not two.exists()


def test_a_longer_length_is_allowed_and_said(capsys, recipe, tmp_path):
    run = tmp_path / "run"
    assert told(capsys, "train", recipe, "--out", run)[0] == 0
    line = ["train", recipe, "--out", run, "--resume", "--train.length", "6 steps"]
    assert told(capsys, *line)[0] == 0
    assert RunFolder(run).newest() == 6
    events = [row for row in RunFolder(run).rows("metrics.jsonl") if row["kind"] == "event"]
    messages = [event["message"] for event in events]
    assert "train.length was 4 steps and is now 6 steps" in messages


def test_a_damaged_checkpoint_gives_way_to_the_one_before(capsys, recipe, tmp_path):
    run = tmp_path / "run"
    line = ["train", recipe, "--out", run, "--checkpoint.every", "2 steps"]
    assert told(capsys, *line)[0] == 0
    folder = RunFolder(run)
    victim = folder.folder(4) / "model.safetensors"
    victim.write_bytes(victim.read_bytes()[:-1] + b"\x00")
    assert folder.newest() == 2
    assert told(capsys, *line, "--resume")[0] == 0
    assert folder.newest() == 4


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.geteuid() != 0,
    reason="mounting a small disk needs root on Linux",
)
def test_a_full_disk_loses_nothing(recipe, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this container may not mount a disk")
    try:
        line = ["train", recipe, "--out", disk / "run", "--checkpoint.every", "1 steps"]
        line += ["--checkpoint.keep_last", "100", "--train.length", "50 steps"]
        done = run_command(*line)
        assert done.returncode == 3, done.stdout + done.stderr
        assert "no space left on the device" in done.stderr
        assert "Traceback" not in done.stderr
        folder = RunFolder(disk / "run")
        assert folder.newest() >= 1
        assert json.loads((folder.folder(folder.newest()) / "state.json").read_text())["step"]
        assert not list(folder.checkpoints.glob(".tmp-*"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_help_names_every_command(capsys):
    from sparrowlm.cli import COMMANDS

    code, said = told(capsys, "--help")
    assert code == 0
    assert all(name in said for name in COMMANDS)
    for place, _ in COMMANDS.values():
        file = place.partition(":")[0]
        assert (Path(__file__).parents[2] / "src/sparrowlm/cli" / f"{file}.py").is_file()
