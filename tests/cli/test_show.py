"""The live block fits its terminal, plain lines stay plain, and no sample is obeyed."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from sparrowlm.cli.show import SAMPLE_LINES, Display, PrepareProgress
from sparrowlm.config import Recipe

SUMMARY = {
    "steps": 640,
    "val_loss": 3.0,
    "val_bits_per_byte": 1.4,
    "gzip_bits_per_byte": 1.9,
    "xz_bits_per_byte": 1.3,
    "wall_seconds": 182.4,
    "parameters": 4_237_568,
}


def row(step: int, seconds: float, **more: Any) -> dict[str, Any]:
    return {
        "kind": "train", "step": step, "loss": 3.2145, "bits_per_byte": 1.8234, "lr": 2.9e-3,
        "grad_norm": 0.4, "tokens": step * 6144, "seconds": seconds, "tokens_per_second": 21_400.0,
        "mfu": 0.634, "memory_bytes": 1_264_000_000, "skipped": 0, **more,
    }  # fmt: skip


def evaluation(step: int, loss: float) -> dict[str, Any]:
    return {"step": step, "val_loss": loss, "val_bits_per_byte": loss / 2, "seconds": step / 2}


def terminal(width: int) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)


def plain() -> Console:
    return Console(file=io.StringIO(), force_terminal=False)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def shown(display: Display, width: int) -> list[str]:
    """The live block as it stands, line by line."""
    console = terminal(width)
    console.print(display.block())
    return written(console).splitlines()


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("step", [0, 1, 999_999_999])
def test_live_block_is_two_lines_that_fit(width: int, step: int) -> None:
    display = Display(terminal(width), clock=lambda: 0.0)
    display.total_steps = 1_000_000_000
    if step:
        display.step(row(1, 0.5))
        display.step(row(step, 4e7, skipped=3))
        display.evaluation(evaluation(step, 3.5))
    lines = shown(display, width)
    assert len(lines) == 2
    assert all(cell_len(line) <= width for line in lines)


def test_live_block_says_all_at_120_columns() -> None:
    display = Display(terminal(120), clock=lambda: 0.0)
    display.total_steps = 640
    display.step(row(1, 1.0))
    display.step(row(321, 81.0))
    head, figures = shown(display, 120)
    for part in ("step 321/640", "50%", "1:20 left"):
        assert part in head
    for part in (
        "loss 3.215", "1.823 bits/byte", "lr 2.90e-03", "21.4k tok/s", "63% mfu", "1.26 GB",
    ):  # fmt: skip
        assert part in figures


def test_time_left_of_minutes_goes_on_between_rows() -> None:
    now = [100.0]
    display = Display(terminal(80), clock=lambda: now[0])
    display.budget = 180.0
    display.step(row(10, 60.0))
    assert "2:00 left" in shown(display, 80)[0]
    now[0] += 30.0
    assert "1:30 left" in shown(display, 80)[0]


def test_plain_lines_come_every_ten_seconds_of_training() -> None:
    console = plain()
    display = Display(console)
    display.start(["the plan"], total_steps=100, seconds=0.0)
    for step in range(1, 101):
        display.step(row(step, step * 0.5))
    display.close()
    lines = written(console).splitlines()
    assert lines[0] == "the plan"
    assert len([line for line in lines if "loss 3.215" in line]) == 5
    assert "\x1b" not in written(console)


def test_an_evaluation_worse_than_before_names_the_best() -> None:
    console = plain()
    display = Display(console)
    display.evaluation(evaluation(50, 3.0))
    display.evaluation(evaluation(100, 3.5))
    first, second = written(console).splitlines()
    assert "held out" in first
    assert "1.500 bits/byte" in first
    assert "best" not in first
    assert "best 3.000 at step 50" in second


@pytest.mark.parametrize(
    ("stage", "told"), [("sft", "held-out answers"), ("pretrain", "text it has not seen")]
)
def test_the_ending_says_what_was_held_out(stage, told) -> None:
    console = plain()
    Display(console, recipe=Recipe(stage=stage)).finish({"val_bits_per_byte": 1.5})
    assert f"needs 1.500 bits per byte of {told}" in written(console)


def test_a_sample_is_text_and_nothing_in_it_is_obeyed() -> None:
    for console in (plain(), terminal(80)):
        display = Display(console)
        display.sample("[bold]", "a [red]b[/red] \x1b[2J \x07 :smile:\n\n")
        assert "[bold]a [red]b[/red] \ufffd[2J \ufffd :smile:" in written(console)
        assert "\x1b[2J" not in written(console)


def test_chinese_samples_fit_the_terminal() -> None:
    console = terminal(80)
    Display(console).sample("李白：", "床前明月光，疑是地上霜。" * 20)
    lines = written(console).splitlines()
    assert len(lines) > 5
    assert max(map(cell_len, lines)) <= 80
    assert "".join(line.removeprefix("  │ ") for line in lines).count("床") == 20


def test_a_long_sample_is_cut() -> None:
    console = plain()
    Display(console).sample("", "line\n" * 100)
    lines = written(console).splitlines()
    assert len(lines) == SAMPLE_LINES + 1
    assert lines[-1].endswith("…")


def test_a_step_that_was_not_finite_is_shown() -> None:
    console = plain()
    Display(console).step(row(3, 1.0, loss=None, bits_per_byte=None, mfu=None, skipped=1))
    assert "loss not finite" in written(console)
    assert "1 skipped" in written(console)


def test_the_end_says_whether_compressors_were_beaten() -> None:
    console = plain()
    display = Display(console)
    display.evaluation(evaluation(50, 2.8))
    display.finish(SUMMARY)
    assert "It beats gzip -9 (1.900, passed after 25 s), but not xz -9 (1.300)." in written(console)


def test_training_takes_the_progress_bar_away() -> None:
    console = terminal(80)
    with PrepareProgress(console) as progress:
        display = Display(console, progress=progress)
        progress("encoding", 10, 100)
        assert progress.live is not None
        display.start([], total_steps=1, seconds=0.0)
        assert progress.live is None
        assert display.live is not None
        display.finish(SUMMARY)
        assert display.live is None


def test_progress_says_speed_and_time_left() -> None:
    console = plain()
    with PrepareProgress(console, every=0.0) as progress:
        progress("encoding", 0, 10_000_000)
        progress.began -= 2.0
        progress("encoding", 4_000_000, 10_000_000)
        progress("encoding", 10_000_000, 10_000_000)
    lines = written(console).splitlines()
    assert "encoding  4 MB of 10 MB  2 MB/s  0:03 left" in lines
    assert lines[-1].startswith("encoding  10 MB")
