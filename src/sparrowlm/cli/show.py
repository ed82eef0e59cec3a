"""What a person sees while text is prepared and a model trains.

On a terminal one live block at the bottom, with evaluations, samples and events printed above it;
elsewhere plain lines, few enough for a log file.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sparrowlm.config import Recipe, load_recipe
from sparrowlm.config.units import show_bytes, show_clock, show_count
from sparrowlm.report.advice import next_commands
from sparrowlm.report.read import Run, number
from sparrowlm.report.verdict import in_short, pace
from sparrowlm.report.words import printable

Row = dict[str, Any]
SAMPLE_LINES = 12  # of one sample on the screen; samples.jsonl has it whole
TOLD = ("reward", "accuracy", "margin")  # of stages that judge answers
REFRESH = 4  # times a second; a refresh costs about a millisecond


class Display:
    """Shows a run while it goes on; see `train.sitting.Display` for when each method is called.

    Args:
        console: where to; standard output unless given.
        recipe: of the run; None where it is not known.
        progress: of preparing text; its bar goes away when training starts.
        every: seconds of training between two plain lines.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        recipe: Recipe | None = None,
        progress: PrepareProgress | None = None,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = console or Console(highlight=False)
        self.is_live = self.console.is_terminal and not self.console.is_dumb_terminal
        self.recipe, self.progress, self.every, self.clock = recipe, progress, every, clock
        self.total_steps, self.budget = 0, 0.0
        self.first: Row = {}  # of this sitting, to measure pace from
        self.row: Row = {}
        self.evals: list[Row] = []
        self.heard = 0.0  # the clock when the last row came
        self.told = float("-inf")  # seconds of the last plain line
        self.live: Live | None = None

    def start(self, plan: list[str], *, total_steps: int, seconds: float) -> None:
        """Print the plan and begin; length 0 in both is unknown."""
        if self.progress is not None:
            self.progress.close()
        self.total_steps, self.budget = total_steps, seconds
        for line in plan:
            self._print(Text(line))
        if self.is_live:
            self.live = Live(
                console=self.console,
                get_renderable=self.block,
                refresh_per_second=REFRESH,
                transient=True,
            )
            self.live.start()

    def step(self, row: Row) -> None:
        """Take in a step's row; the live block draws itself."""
        self.row, self.heard = row, self.clock()
        self.first = self.first or row
        if not self.is_live and self._seconds() - self.told >= self.every:
            self.told = self._seconds()
            self._print(self._plain_line())

    def evaluation(self, row: Row) -> None:
        """Print what the held-out split says, and the best where that was earlier."""
        whole = row.get("kind") == "eval_whole"
        name = "held out, all of it" if whole else "held out"
        if stride := row.get("stride"):
            name += f", windows {stride} apart"
        line = Text.assemble(*self._place(row), (name, "bold"))
        if row.get("val_loss") is not None or "val_reward" not in row:
            line.append(f"  loss {_loss(row, 'val_')}")
        if (bits := number(row.get("val_bits_per_byte"))) is not None:
            line.append("  ").append(f"{bits:.3f} bits/byte", "bold")
        for name in TOLD:
            if (value := number(row.get(f"val_{name}"))) is not None:
                line.append(f"  {name} {value:.3f}", "bold")
        for key, value in row.items():  # of each source of a mixture
            if key.startswith("val_loss/") and (loss := number(value)) is not None:
                line.append(f"  {key.removeprefix('val_loss/')} {loss:.3f}")
        best = min([] if whole else self.evals, key=_val_loss, default=row)
        if _val_loss(best) < _val_loss(row):
            line.append(f"  (best {_loss(best, 'val_')} at step {best['step']})", "dim")
        if not whole:
            self.evals.append(row)
        self._print(line)

    def sample(self, prompt: str, text: str) -> None:
        """Print the start of what the model wrote."""
        whole = Text(printable(prompt), "bold").append(printable(text), "not bold")
        if self.console.is_terminal:
            lines = list(whole.wrap(self.console, max(self.console.width - 4, 10), tab_size=4))
        else:
            lines = list(whole.split("\n"))
        while lines and not lines[-1].plain.strip():
            lines.pop()
        if len(lines) > SAMPLE_LINES:
            lines = [*lines[:SAMPLE_LINES], Text("…")]
        for line in lines:
            line.rstrip()
            self._print(Text.assemble(("  │ ", "dim"), line))

    def event(self, message: str) -> None:
        """Print what happened."""
        self._print(Text.assemble(*self._place(self.row), (printable(message), "yellow")))

    def finish(self, summary: Row) -> None:
        """Take the live block away and print what came of it."""
        self.close()
        run = Run(Path(), self.recipe, summary=summary, evals=self.evals)
        self._print(Text())
        self._print(Text(in_short(run), "bold"))
        self._print(Text(pace(run), "dim"))

    def close(self) -> None:
        """Take the live block away, whatever happened; may be called twice."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def _print(self, line: Text) -> None:
        # Where nobody's window sets a width, a line stays one line.
        self.console.print(line, soft_wrap=not self.console.is_terminal)

    def _place(self, row: Row) -> list[tuple[str, str]]:
        """Step and time, as wide in every line."""
        step, seconds = row.get("step", ""), number(row.get("seconds"))
        shown = show_clock(seconds) if seconds is not None else ""
        return [(f"{step:>7}  {shown:>7}  ", "dim")]

    def _seconds(self) -> float:
        return number(self.row.get("seconds")) or 0.0

    def _done(self) -> tuple[float, float | None]:
        """(share done, seconds left); None left while the pace is not known yet."""
        since = self.clock() - self.heard if self.row else 0.0
        spent, step = self._seconds() + since, self.row.get("step", 0)
        if self.budget:
            return min(spent / self.budget, 1.0), max(self.budget - spent, 0.0)
        if not self.total_steps:
            return 0.0, None
        steps = step - self.first.get("step", step)
        if not steps:
            return step / self.total_steps, None
        per_step = (self._seconds() - self.first["seconds"]) / steps
        left = per_step * (self.total_steps - step) - since
        return step / self.total_steps, max(left, 0.0)

    def block(self) -> Group:
        """Two lines: how far, and how well."""
        share, left = self._done()
        total = f"/{self.total_steps:,}" if self.total_steps else ""
        head = Table.grid(padding=(0, 2, 0, 0), expand=True)
        head.add_column(no_wrap=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True, justify="right")
        time_left = f"{show_clock(left)} left" if left is not None else ""
        head.add_row(
            Text(f"step {self.row.get('step', 0):,}{total}", "bold"),
            ProgressBar(total=1.0, completed=share, pulse=not self.row),
            Text(f"{share:>4.0%}  {time_left}"),
        )
        return Group(head, self._figures(self.console.width))

    def _figures(self, width: int) -> Text:
        """The row's figures in one line; where there is little room, the last are left out."""
        line = Text(no_wrap=True, overflow="crop")
        if not self.row:
            return line.append("the first step is under way", "dim")
        for field in self._fields():
            gap = "  " if line.plain else ""
            if line.cell_len + len(gap) + len(field) <= width:
                line.append(gap + field)
        return line

    def _fields(self) -> list[str]:
        """Loss, what answers earn, bits per byte, speed, learning rate, utilization, memory, what
        is held out."""
        row = self.row
        fields = [f"loss {_loss(row)}"]
        for key, shown in (
            ("bits_per_byte", "{:.3f} bits/byte"),
            ("lr", "lr {:.2e}"),
            ("mfu", "{:.0%} mfu"),
        ):
            if (value := number(row.get(key))) is not None:
                fields.append(shown.format(value))
        told = [f"{name} {row[name]:.3f}" for name in TOLD if number(row.get(name)) is not None]
        fields[1:1] = told
        if (speed := number(row.get("tokens_per_second"))) is not None:
            fields.insert(-1 if len(fields) > 2 else len(fields), f"{show_count(speed)} tok/s")
        if memory := number(row.get("memory_bytes")):
            fields.append(show_bytes(memory))
        if skipped := number(row.get("skipped")):
            fields.append(f"{skipped:.0f} skipped")
        if self.is_live and self.evals and number(self.evals[-1].get("val_loss")) is not None:
            fields.append(f"held out {_loss(self.evals[-1], 'val_')}")
        return fields

    def _plain_line(self) -> Text:
        share, left = self._done()
        line = Text.assemble(*self._place(self.row), "training  ", "  ".join(self._fields()))
        if left is not None:
            line.append(f"  {share:.0%}  {show_clock(left)} left")
        return line


class PrepareProgress:
    """How far preparing text is: `progress("tokens", done, total)`, in bytes, or in what `shown`
    makes of a number.

    Shows nothing until called, and ends each bar when it is full.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        every: float = 5.0,
        shown: Callable[[float], str] = show_bytes,
    ) -> None:
        self.console = console or Console(highlight=False)
        self.is_live = self.console.is_terminal and not self.console.is_dumb_terminal
        self.every, self.shown = every, shown
        self.what = ""
        self.began = self.told = 0.0
        self.live: Live | None = None
        self.now: tuple[int, int] = (0, 0)

    def __enter__(self) -> PrepareProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show it; `total` 0 is unknown, and `done` equal to it ends the bar."""
        if what != self.what:
            self.close()
            self.what, self.began, self.told = what, time.monotonic(), time.monotonic()
        self.now = (done, total)
        if total and done >= total:
            self.close()
            self.console.print(Text(self._line(), "dim"), soft_wrap=True)
            self.what = ""
        elif self.is_live and self.live is None:
            self.live = Live(
                console=self.console,
                get_renderable=self._block,
                refresh_per_second=REFRESH,
                transient=True,
            )
            self.live.start()
        elif not self.is_live and time.monotonic() - self.told >= self.every:
            self.told = time.monotonic()
            self.console.print(Text(self._line()), soft_wrap=True)

    def close(self) -> None:
        """Take the bar away; may be called twice."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def _line(self) -> str:
        """`tokens  4.1 MB of 9.9 MB  5.2 MB/s  0:01 left`."""
        (done, total), spent = self.now, max(time.monotonic() - self.began, 1e-6)
        speed = done / spent
        parts = [self.what, self.shown(done) + (f" of {self.shown(total)}" if total > done else "")]
        if spent > 0.05:
            parts.append(f"{self.shown(speed)}/s")
        if total > done and done:
            parts.append(f"{show_clock((total - done) / speed)} left")
        return "  ".join(parts)

    def _block(self) -> Table:
        done, total = self.now
        block = Table.grid(padding=(0, 2, 0, 0), expand=True)
        block.add_column(no_wrap=True)
        block.add_column(ratio=1)
        block.add_row(
            Text(self._line()),
            ProgressBar(total=total or None, completed=done, pulse=not total),
        )
        return block


def show_ending(folder: Path, console: Console | None = None) -> None:
    """Where the report is, and what to try next."""
    console = console or Console(highlight=False)
    console.print(
        Text.assemble("\nreport  ", (str(folder / "report.html"), "bold")), soft_wrap=True
    )
    console.print(Text("\nnext"), soft_wrap=True)
    config = folder / "config.toml"
    recipe = load_recipe(config) if config.is_file() else None
    for command, meaning in next_commands(folder, recipe):
        console.print(Text.assemble("  ", (command, "bold")), soft_wrap=True)
        console.print(Text(f"      {meaning}", "dim"), soft_wrap=True)


def _loss(row: Row, before: str = "") -> str:
    value = number(row.get(f"{before}loss"))
    return "not finite" if value is None else f"{value:.3f}"


def _val_loss(row: Row) -> float:
    value = number(row.get("val_loss"))
    return float("inf") if value is None else value
