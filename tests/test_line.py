"""Stages in order: each from the one before; killed anywhere, they end as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparrowlm.checkpoint import RunFolder, find_run
from sparrowlm.cli import main
from sparrowlm.cli.stages import read_stages
from sparrowlm.cli.train import Options
from sparrowlm.config import Recipe, dump_recipe
from sparrowlm.config.line import load_stages
from sparrowlm.errors import ConfigError, RunError
from sparrowlm.line import is_finished, run_stages
from sparrowlm.pipeline import train
from support import Silent, byte_dataset, command, quick, run_ranks, same_results, tiny_recipe

STAGES = """
[[stage]]
kind = "pretrain"
name = "base"

[[stage]]
kind = "pretrain"
name = "more"
[stage.train]
length = "6 steps"
[stage.optim]
lr = 0.02
"""


class Killed(Exception):
    """Stands for a process that ends at once."""


def write_line(folder: Path, length: str = "4 steps") -> Path:
    byte_dataset(folder / "data")
    recipe = replace(
        tiny_recipe(),
        data=replace(Recipe().data, path=(str(folder / "data"),)),
        checkpoint=replace(Recipe().checkpoint, every="1 steps"),
    )
    recipe = replace(recipe, train=replace(recipe.train, length=length))
    common = dump_recipe(recipe).partition("\n")[2]
    path = folder / "line.toml"
    path.write_text(common + STAGES, encoding="utf-8")
    return path


def runner(stop_after: int = 10**9, started: list[str] | None = None):
    """Trains a stage; is killed when it is asked so often whether to stop."""
    left = [stop_after]

    def ask() -> bool:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return False

    def run(recipe: Recipe, folder: Path, resume: bool) -> bool:
        if started is not None:
            started.append(f"{folder.name}{' again' if resume else ''}")
        train(recipe, folder, Silent(), resume=resume, should_stop=ask)  # pyright: ignore
        return False

    return run


@pytest.fixture(autouse=True, scope="module")
def _quick(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        quick(patch, tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    path = write_line(folder)
    assert run_stages(load_stages(path), folder / "out", runner())
    return folder


def test_stages_run_in_order_each_from_the_one_before(straight: Path) -> None:
    out = straight / "out"
    first, second = RunFolder(out / "1-base"), RunFolder(out / "2-more")
    assert second.recipe().init.from_ == str(out / "1-base")
    assert second.recipe().model == first.recipe().model
    assert (first.newest(), second.newest()) == (4, 6)
    before = [row["val_loss"] for row in first.rows("metrics.jsonl") if row["kind"] == "eval"]
    begun = [row["loss"] for row in second.rows("metrics.jsonl") if row["kind"] == "train"]
    assert begun[0] < before[0] + 0.5 < 5.0  # random weights cost ln 256 = 5.55


@pytest.mark.parametrize(
    ("asked", "then"),
    [
        (2, ["1-base again", "2-more"]),
        (4, ["2-more"]),
        (7, ["2-more again"]),
    ],
)
def test_a_kill_inside_or_between_stages_changes_nothing(
    straight: Path, tmp_path: Path, asked: int, then: list[str]
) -> None:
    stages, out = load_stages(straight / "line.toml"), tmp_path / "out"
    with pytest.raises(Killed):
        run_stages(stages, out, runner(asked))
    if asked == 4:  # the second had begun, and had saved nothing
        assert not is_finished(out / "2-more", stages[1].recipe)
        for name in ("config.toml", "metrics.jsonl"):
            (out / "2-more" / name).unlink(missing_ok=True)
    with pytest.raises(RunError, match="add --resume"):
        run_stages(stages, out, runner())
    started: list[str] = []
    assert run_stages(stages, out, runner(started=started), resume=True)
    assert started == then
    for name in ("1-base", "2-more"):
        same_results(out / name, straight / "out" / name)
    started.clear()
    assert run_stages(stages, out, runner(started=started), resume=True)
    assert not started


def test_what_is_finished_but_broken_is_done_again(straight: Path, tmp_path: Path) -> None:
    stages, out = load_stages(straight / "line.toml"), tmp_path / "out"
    assert run_stages(stages, out, runner())
    weights = out / "2-more/checkpoints/step-00000006/model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    started: list[str] = []
    assert run_stages(stages, out, runner(started=started), resume=True)
    assert started == ["2-more again"]
    same_results(out / "2-more", straight / "out/2-more")


def test_started_stages_stay_what_they_are(straight: Path) -> None:
    stages, out = load_stages(straight / "line.toml"), straight / "out"
    longer = stages[0]._replace(
        recipe=replace(stages[0].recipe, train=replace(stages[0].recipe.train, length="9 steps"))
    )
    with pytest.raises(RunError, match="base was 4 steps long and is now 9 steps, but more has"):
        run_stages([longer, stages[1]], out, runner(), resume=True)
    with pytest.raises(RunError, match="stage 2 was more and is now left out"):
        run_stages(stages[:1], out, runner(), resume=True)
    with pytest.raises(RunError, match="holds no stages to resume"):
        run_stages(stages, out / "none", runner(), resume=True)
    with pytest.raises(RunError, match="holds a single run"):
        run_stages(stages, out / "1-base", runner())
    with pytest.raises(RunError, match=r"give one of them: .*1-base, .*2-more"):
        find_run(out)


def options(path: Path, *words: str) -> list[Recipe]:
    return [stage.recipe for stage in read_stages(path, list(words), Options, "sparrow train")[0]]


def test_options_reach_all_stages_or_one_by_name(tmp_path: Path) -> None:
    path = write_line(tmp_path)
    base, more = options(path, "--more.train.length", "3 steps", "--train.length=2 steps")
    assert (base.train.length, more.train.length) == ("2 steps", "3 steps")
    base, more = options(path, "--model.d-model", "48", "--init.from", "runs/b", "--optim.lr", "1")
    assert (base.model.d_model, base.init.from_) == (48, "runs/b")
    assert (more.model.d_model, more.init.from_) == (256, "@base")
    assert base.optim.lr == more.optim.lr == 1.0
    base, more = options(path, "--more.init.from", "runs/c", "--base.data.path", "a", "b")
    assert (base.data.path, more.init.from_) == (("a", "b"), "runs/c")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--mroe.train.length", "1 steps"], "no stage 'mroe'; did you mean more?"),
        (["--stage", "sft"], "a list of stages has several"),
        (["--more.init.from", "@bass"], "no earlier stage is called so; did you mean base?"),
    ],
)
def test_an_option_for_no_stage_is_refused(tmp_path: Path, words: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        options(write_line(tmp_path), *words)
    assert told in str(caught.value)


def test_plan_shows_each_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(write_line(tmp_path))]) == 0
    shown = capsys.readouterr().out
    assert "stage 1 of 2, base" in shown
    assert "stage 2 of 2, more" in shown
    found = [line.split()[1] for line in shown.splitlines() if line.startswith("parameters")]
    assert found[0] == found[1]


def test_plan_takes_a_teacher_from_an_earlier_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_line(tmp_path)
    student = '[[stage]]\nkind = "distill"\n[stage.init]\nfrom = ""\n'
    student += '[stage.distill]\nteacher = "@more"\n'
    path.write_text(path.read_text(encoding="utf-8") + student, encoding="utf-8")
    assert main(["plan", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "stage 3 of 3, distill" in shown
    frozen = [line.split() for line in shown.splitlines() if line.startswith("frozen")]
    assert len(frozen) == 1


@pytest.mark.slow
def test_two_ranks_equal_one_through_all_stages(tmp_path: Path) -> None:
    path, double = write_line(tmp_path), ("--train.precision", "float64")
    for ranks in (1, 2):
        out = tmp_path / f"out{ranks}"
        done = run_ranks("train", path, "--out", out, *double, ranks=ranks)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("stage 2 of 2, more") == 1  # rank 0 alone speaks
    for name, step in (("1-base", 4), ("2-more", 6)):
        one, two = (RunFolder(tmp_path / f"out{ranks}" / name) for ranks in (1, 2))
        assert two.newest() == step
        first, second = one.load(step).model, two.load(step).model
        for key, tensor in first.items():
            torch.testing.assert_close(second[key], tensor, rtol=0, atol=1e-10)
    again = run_ranks("train", path, "--out", tmp_path / "out2", *double, "--resume", ranks=2)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("finished before") == 2


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to hear")
def test_a_signal_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    path, out = write_line(tmp_path, length="2 steps"), tmp_path / "out"
    process = subprocess.Popen(
        command("train", path, "--out", out, "--more.train.length", "100000 steps"),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    log, deadline = out / "2-more/metrics.jsonl", time.monotonic() + 120
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 0, told
    assert "stage 1 of 2, base" in told
    assert f"sparrow train {out}/stages.toml --out {out} --resume" in told
    again = ["train", str(out / "stages.toml"), "--out", str(out), "--resume"]
    last = RunFolder(out / "2-more").newest()
    assert main([*again, "--more.train.length", f"{last + 2} steps"]) == 0
    assert RunFolder(out / "2-more").newest() == last + 2
