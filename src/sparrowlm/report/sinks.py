"""A run's numbers passed on to trackers that people use already: `report.sinks` of a recipe.

metrics.jsonl stays what counts. A sink is loaded only where it is named, sends nothing anywhere
unless the user's environment says so, and never ends a run: one that raises is switched off, which
the log says once.

What a sink keeps is below RUN/sinks/NAME, but for trackio's, which has one database for all.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from sparrowlm import files
from sparrowlm.config import Recipe, dump_recipe
from sparrowlm.report.read import Row, number
from sparrowlm.report.watch.compare import settings
from sparrowlm.runtime import env, env_default
from sparrowlm.text.extras import need
from sparrowlm.train.sitting import Display

PROJECT = "sparrow"


class Sink(Protocol):
    """Where numbers go."""

    def start(self, config: Mapping[str, Any]) -> None:
        """Before the first row: the settings, as {"train.seed": 1337}."""

    def row(self, step: int, metrics: Mapping[str, float]) -> None:
        """After each step and each measurement: {"train/loss": 3.2}."""

    def finish(self) -> None:
        """After the last row, however the run ended."""


class TensorBoard:
    """Event files; `tensorboard --logdir RUN/sinks/tensorboard`.

    A resumed run writes a new file, and says in it that what the others have from its first step
    on holds no longer.

    Args:
        run: the run folder.
        step: where this sitting starts; 0 for a new run.
    """

    def __init__(self, run: Path, step: int) -> None:
        need("tensorboard", "tensorboard", "report.sinks", load=False)
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.event, self.summary = event_pb2, summary_pb2
        self.step = step
        self.writer = EventFileWriter(str(run / "sinks" / "tensorboard"), flush_secs=10)

    def start(self, config: Mapping[str, Any]) -> None:
        """The settings as a table in TensorBoard's texts."""
        from tensorboard.plugins.text.summary_v2 import text_pb

        if self.step:
            begun = self.event.SessionLog(status=self.event.SessionLog.START)
            self._write(self.step + 1, session_log=begun)
        rows = [f"| {key} | `{json.dumps(value)}` |" for key, value in config.items()]
        table = "\n".join(["| setting | value |", "| --- | --- |", *rows])
        self._write(self.step, summary=text_pb("config", table))

    def row(self, step: int, metrics: Mapping[str, float]) -> None:
        """One scalar for each number."""
        value = self.summary.Summary.Value
        values = [value(tag=tag, simple_value=amount) for tag, amount in metrics.items()]
        self._write(step, summary=self.summary.Summary(value=values))

    def finish(self) -> None:
        """Close the file."""
        self.writer.close()

    def _write(self, step: int, **content: Any) -> None:
        self.writer.add_event(self.event.Event(wall_time=time.time(), step=step, **content))


class WandB:
    """Weights & Biases, offline unless `WANDB_MODE` says otherwise; `wandb sync` sends it later.

    Offline it would still report its own errors to its makers, which is off then, too.

    A resumed run has the id of the run before, so both parts become one where they are sent.

    Args:
        run: the run folder.
        step: where this sitting starts.
    """

    def __init__(self, run: Path, step: int) -> None:
        self.run, self.mode = run, env("WANDB_MODE", "offline")
        if self.mode == "offline":
            env_default("WANDB_ERROR_REPORTING", "false")  # read when it is loaded
        self.wandb = need("wandb", "wandb", "report.sinks")

    def start(self, config: Mapping[str, Any]) -> None:
        """Begin, or go on."""
        folder = self.run / "sinks" / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        self.tracked = self.wandb.init(
            project=env("WANDB_PROJECT", PROJECT),
            name=self.run.resolve().name,
            id=identity(folder),
            dir=str(folder),
            mode=self.mode,
            resume="allow",
            config=dict(config),
            # The terminal is the display's.
            settings=self.wandb.Settings(silent=True, console="off"),
        )

    def row(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log them."""
        self.tracked.log(dict(metrics), step=step)

    def finish(self) -> None:
        """Write what waits."""
        self.tracked.finish()


class SwanLab:
    """SwanLab, offline unless `SWANLAB_MODE` says otherwise; `swanlab sync` sends it later.

    Args:
        run: the run folder.
        step: where this sitting starts.
    """

    def __init__(self, run: Path, step: int) -> None:
        self.run = run
        self.swanlab = need("swanlab", "swanlab", "report.sinks")

    def start(self, config: Mapping[str, Any]) -> None:
        """Begin, or go on."""
        folder = self.run / "sinks" / "swanlab"
        folder.mkdir(parents=True, exist_ok=True)
        mode = env("SWANLAB_MODE", "offline")
        # Offline it begins a new run each time, and refuses an id or leaves it out.
        online = mode in ("cloud", "online")
        again = {"id": identity(folder), "resume": "allow"} if online else {}
        self.tracked = self.swanlab.init(
            project=env("SWANLAB_PROJ_NAME", PROJECT),
            experiment_name=self.run.resolve().name,
            logdir=str(folder),
            mode=mode,
            config=dict(config),
            **again,
        )

    def row(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log them."""
        self.swanlab.log(dict(metrics), step=step)

    def finish(self) -> None:
        """Write what waits."""
        self.swanlab.finish()


class Trackio:
    """trackio's local database, which `trackio show` draws; a Space only where `TRACKIO_SPACE_ID`
    names one.

    Args:
        run: the run folder.
        step: where this sitting starts.
    """

    def __init__(self, run: Path, step: int) -> None:
        self.run = run
        self.trackio = need("trackio", "trackio", "report.sinks")

    def start(self, config: Mapping[str, Any]) -> None:
        """Begin, or go on under the same name."""
        folder = self.run / "sinks" / "trackio"
        folder.mkdir(parents=True, exist_ok=True)
        self.trackio.init(
            project=PROJECT,
            name=f"{self.run.resolve().name}-{identity(folder)[:6]}",
            config=dict(config),
            resume="allow",
            embed=False,
        )

    def row(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log them."""
        self.trackio.log(dict(metrics), step=step)

    def finish(self) -> None:
        """Write what waits."""
        self.trackio.finish()


SINKS: dict[str, Callable[[Path, int], Sink]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "swanlab": SwanLab,
    "trackio": Trackio,
}


class Forwarding:
    """A display that tells sinks what it is told, and goes on without those that fail.

    Args:
        display: shows the run.
        recipe: resolved; names the sinks.
        run: the run folder.
        step: where this sitting starts.
        log: takes a row of kind `event` into metrics.jsonl.
    """

    def __init__(
        self,
        display: Display,
        recipe: Recipe,
        run: Path,
        step: int,
        log: Callable[[Row], None],
    ) -> None:
        self.display, self.recipe, self.run, self.log = display, recipe, run, log
        self.place: Row = {"step": step, "seconds": 0.0}
        self.sinks: dict[str, Sink] = {}

    def start(self, plan: list[str], *, total_steps: int, seconds: float) -> None:
        """Show the plan; then open the sinks."""
        self.display.start(plan, total_steps=total_steps, seconds=seconds)
        texts = settings(dump_recipe(self.recipe))
        config = {key: json.loads(text) for key, text in texts.items()}
        for name in dict.fromkeys(self.recipe.report.sinks):
            with self._forgiven(name):
                self.sinks[name] = SINKS[name](self.run, int(self.place["step"]))
                self.sinks[name].start(config)

    def step(self, row: Row) -> None:
        """A step's row."""
        self.display.step(row)
        self._pass_on(row)

    def evaluation(self, row: Row) -> None:
        """A measurement's row."""
        self.display.evaluation(row)
        self._pass_on(row)

    def sample(self, prompt: str, text: str) -> None:
        """For the display alone."""
        self.display.sample(prompt, text)

    def event(self, message: str) -> None:
        """For the display alone."""
        self.display.event(message)

    def finish(self, summary: dict[str, Any]) -> None:
        """For the display alone; sinks are closed however a run ends."""
        self.display.finish(summary)

    def close(self) -> None:
        """Close the sinks."""
        for name in list(self.sinks):
            with self._forgiven(name):
                self.sinks.pop(name).finish()

    def _pass_on(self, row: Row) -> None:
        self.place = {"step": row.get("step", 0), "seconds": row.get("seconds", 0.0)}
        metrics = tagged(row)
        for name in list(self.sinks):
            with self._forgiven(name):
                self.sinks[name].row(int(self.place["step"]), metrics)

    @contextmanager
    def _forgiven(self, name: str) -> Iterator[None]:
        """Whatever a sink raises switches it off, and is said once."""
        try:
            yield
        except Exception as fault:  # other people's code, which no training should end by
            self.sinks.pop(name, None)
            told = " ".join(str(fault).split())
            message = f"sink {name} is off from here on: {type(fault).__name__}: {told}"
            self.log({"kind": "event", **self.place, "message": message})
            self.display.event(message)


@contextmanager
def forwarding(
    display: Display, recipe: Recipe, run: Path, step: int, log: Callable[[Row], None]
) -> Iterator[Display]:
    """The display, with the sinks behind it that a recipe names; they are closed at the end."""
    if not recipe.report.sinks:
        yield display
        return
    told = Forwarding(display, recipe, run, step, log)
    try:
        yield told
    finally:
        told.close()


def tagged(row: Row) -> dict[str, float]:
    """The numbers of a row of metrics.jsonl under names that trackers group.

    >>> tagged({"kind": "train", "step": 1, "loss": 3.0, "bits_per_byte": None})
    {'train/loss': 3.0}
    >>> tagged({"kind": "eval", "step": 1, "val_loss": 3.5, "tokens": 4096})
    {'val/loss': 3.5}
    """
    found = {key: value for key, entry in row.items() if (value := number(entry)) is not None}
    if row.get("kind") == "train":
        return {f"train/{key}": value for key, value in found.items() if key != "step"}
    group = "whole" if row.get("kind") == "eval_whole" else "val"
    prefix = "val_"
    return {
        f"{group}/{key.removeprefix(prefix)}": value
        for key, value in found.items()
        if key.startswith(prefix)
    }


def identity(folder: Path) -> str:
    """A name of 21 characters that no other run has, kept in `folder` for a run that resumes."""
    path = folder / "id"
    if not path.is_file():
        files.write_text(path, uuid.uuid4().hex[:21])
    return path.read_text(encoding="utf-8").strip()
