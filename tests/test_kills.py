"""Killed with SIGKILL and resumed, a run ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from sparrowlm.checkpoint import RunFolder
from sparrowlm.files import TEMPORARY
from support import Copy, command, run_command, run_ranks, same_results, starter, write_recipe

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
PATIENCE = 120.0


def saving(run: Path) -> bool:
    """Whether a checkpoint is being written right now."""
    folder = run / "checkpoints"
    return any(name.startswith(f"{TEMPORARY}step-") for name in os.listdir(folder))


def kill_once(recipe: Path, run: Path, when: str, dice: random.Random) -> bool:
    """Start or resume the run and kill it: a moment after its next step, or inside a save.

    Returns:
        Whether it was killed; False where it came to its end first.
    """
    resume = ["--resume"] if (run / "config.toml").exists() else []
    arguments = ["train", str(recipe), "--out", str(run), *resume]
    process = starter().Process(target=Copy(arguments, dict(os.environ)))
    process.start()
    log, deadline = run / "metrics.jsonl", time.monotonic() + PATIENCE
    started = log.stat().st_size if log.exists() else 0
    while process.is_alive() and time.monotonic() < deadline:
        moved = log.exists() and log.stat().st_size > started
        if moved and (when == "anywhere" or saving(run)):
            if when == "anywhere":
                time.sleep(dice.random() * 0.05)
            process.kill()
            break
        time.sleep(0.0002)
    process.join(PATIENCE)
    return process.exitcode == -signal.SIGKILL


def kill_and_compare(folder: Path, kills: int, steps: int) -> int:
    """Kill a run so many times and finish it; returns how many kills were inside a save."""
    dice = random.Random(kills)
    recipe = write_recipe(
        folder,
        train={"length": f"{steps} steps"},
        checkpoint={"every": "2 steps"},
        eval={"every": "5 steps"},
        model={"dropout": 0.1},
    )
    killed, inside = 0, 0
    run = folder / "killed"
    while killed < kills:
        assert kill_once(recipe, run, "anywhere" if killed % 2 else "saving", dice)
        killed += 1
        inside += saving(run)
    assert run_command("train", recipe, "--out", run, "--resume").returncode == 0
    assert not saving(run)
    straight = folder / "straight"
    assert run_ranks("train", recipe, "--out", straight, ranks=1).returncode == 0
    same_results(run, straight)
    return inside


def test_five_kills_change_nothing(tmp_path):
    assert kill_and_compare(tmp_path, kills=5, steps=60) >= 1


@pytest.mark.slow
def test_fifty_kills_change_nothing(tmp_path):
    assert kill_and_compare(tmp_path, kills=50, steps=400) >= 20


def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(tmp_path):
    recipe = write_recipe(tmp_path, train={"length": "100000 steps"})
    run = tmp_path / "run"
    process = subprocess.Popen(
        command("train", recipe, "--out", run),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    log, deadline = run / "metrics.jsonl", time.monotonic() + PATIENCE
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert f"--out {run} --resume" in told
    steps = [row["step"] for row in RunFolder(run).rows("metrics.jsonl") if row["kind"] == "train"]
    assert RunFolder(run).newest() == steps[-1]
