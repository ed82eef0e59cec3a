"""Two processes on one run, as torchrun starts them on CPUs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time

import pytest
import torch

from sparrowlm.checkpoint import RunFolder
from support import EXPERTS, command, run_command, run_ranks, write_recipe


def weights(run):
    folder = RunFolder(run)
    return folder.load(folder.newest()).model


def losses(run):
    rows = RunFolder(run).rows("metrics.jsonl")
    return [row["loss"] for row in rows if row["kind"] == "train"]


# More experts than tokens of a rank's step, 64: each rank leaves some unused that the other uses.
MANY = {"n_experts": 96, "experts_per_token": 1, "d_ff": 8, "norm_topk_prob": False}


@pytest.mark.parametrize(
    ("precision", "tolerance", "shape"),
    [
        ("float64", 1e-10, {}),
        ("float64", 1e-10, MANY),
        pytest.param("float32", 1e-5, {}, marks=pytest.mark.slow),
        pytest.param("float32", 1e-5, EXPERTS, marks=pytest.mark.slow),
    ],
)
def test_two_ranks_equal_one(tmp_path, precision, tolerance, shape):
    train = {"precision": precision, "micro_batch_size": 2}
    recipe = write_recipe(tmp_path, train=train, model=shape)
    start = run_command if precision == "float32" and not shape else run_ranks  # once by torchrun
    for ranks in (1, 2):
        done = start("train", recipe, "--out", tmp_path / f"run{ranks}", ranks=ranks)
        assert done.returncode == 0, done.stdout + done.stderr
    one, two = weights(tmp_path / "run1"), weights(tmp_path / "run2")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=tolerance)
    assert losses(tmp_path / "run2") == pytest.approx(losses(tmp_path / "run1"), rel=1e-5)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_ranks(tmp_path):
    recipe = write_recipe(tmp_path, train={"precision": "float64"}, checkpoint={"every": "5 steps"})
    run = tmp_path / "run"
    assert run_ranks("train", recipe, "--out", run, ranks=1).returncode == 0
    straight, folder = weights(run), RunFolder(run)
    assert folder.steps() == [15, 20]
    shutil.rmtree(folder.folder(20))
    rest = run_ranks("train", recipe, "--out", run, "--resume", ranks=2)
    assert rest.returncode == 0, rest.stdout + rest.stderr
    for name, tensor in straight.items():
        torch.testing.assert_close(weights(run)[name], tensor, rtol=0, atol=1e-10)
    assert "on 2 ranks, before on 1" in rest.stdout


def children(process: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


def started(recipe, run, *options: str) -> subprocess.Popen[str]:
    """A run on two ranks that has made its first steps."""
    line = command("train", recipe, "--out", run, ranks=2)
    process = subprocess.Popen(
        [*line[:3], *options, *line[3:]],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    log, deadline = run / "metrics.jsonl", time.monotonic() + 120
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    return process


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_dead_rank_ends_the_others_within_seconds_and_is_named(tmp_path):
    recipe = write_recipe(tmp_path, train={"length": "1000000 steps"})
    process = started(recipe, tmp_path / "run")
    victim = children(process.pid)[-1]
    began = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    told, _ = process.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert process.returncode != 0
    assert f"pid: {victim}" in told


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_max_restarts_goes_on_from_the_last_checkpoint(tmp_path):
    recipe = write_recipe(tmp_path, train={"length": "400 steps"}, checkpoint={"every": "50 steps"})
    run = tmp_path / "run"
    process = started(recipe, run, "--max-restarts", "2")
    while RunFolder(run).newest() < 50:
        time.sleep(0.05)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    told, _ = process.communicate(timeout=280)
    assert process.returncode == 0, told
    folder = RunFolder(run)
    assert folder.newest() == 400
    events = [row["message"] for row in folder.rows("metrics.jsonl") if row["kind"] == "event"]
    assert any(message.startswith("resumed at step") for message in events)
