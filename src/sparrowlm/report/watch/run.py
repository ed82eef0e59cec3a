"""One run folder, followed, and what state it is in."""

from __future__ import annotations

import tomllib
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from sparrowlm.config.units import parse_span
from sparrowlm.errors import ConfigError
from sparrowlm.report.read import Row, number
from sparrowlm.report.watch.follow import CHUNK, Follower
from sparrowlm.report.watch.track import Track
from sparrowlm.report.words import printable

State = Literal["waiting", "running", "finished", "stopped", "diverged"]

RECENT = 20  # training rows that the state and the loss in the list are of
EVENTS = 200  # the newest are kept
MOMENTS = 128  # steps whose samples are kept; even, since every second one goes when it is full
TEXT_LENGTH = 4000  # characters of one sample
TEXTS = 16  # samples of one moment
STARTING = 900.0  # seconds that a run may compile and read before its first row
SILENT = 120.0  # seconds without a row after which a run has stopped, if its steps are quick
OF_TOKENS = ("pretrain", "sft", "distill")  # stages whose loss is that of tokens, never below 0


class Moments:
    """Samples by the step that they were written at, few enough to be held: when they are too
    many, every second step goes, and from then on half as many are taken in. The newest stays."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, Row]] = []
        self.every, self.seen, self.version = 1, 0, 0

    def add(self, row: Row) -> None:
        """Take a row of samples.jsonl in."""
        step = int(number(row.get("step")) or 0)
        text = {key: _text(row.get(key)) for key in ("prompt", "text")}
        self.version += 1
        if self.steps and self.steps[-1][0] == step:
            self.steps[-1][1]["texts"][TEXTS - 1 :] = []
            self.steps[-1][1]["texts"].append(text)
            return
        if self.steps and (self.seen - 1) % self.every:
            self.steps.pop()  # it was the newest, and is one of those left out now
        self.seen += 1
        moment = {"step": step, "seconds": number(row.get("seconds")), "texts": [text]}
        self.steps.append((step, moment))
        if len(self.steps) > MOMENTS:
            self.steps, self.every = self.steps[::2], self.every * 2

    def told(self) -> list[Row]:
        """The moments in order."""
        return [moment for _, moment in self.steps]


class WatchedRun:
    """A run folder that is read again and again, each time only what is new.

    Args:
        folder: holds config.toml or metrics.jsonl.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics = Follower(folder / "metrics.jsonl")
        self.samples = Follower(folder / "samples.jsonl")
        self.generation = 0  # of `train` and `evals`: a new one has nothing of the old
        self.moments = Moments()
        self._empty()

    def _empty(self) -> None:
        self.generation += 1
        self.train, self.evals = Track(), Track()
        self.events: deque[Row] = deque(maxlen=EVENTS)
        self.recent: deque[Row] = deque(maxlen=RECENT)
        self.first: Row = {}
        self.measured: Row = {}

    @property
    def behind(self) -> int:
        """Bytes of its logs that were not read yet."""
        return self.metrics.behind + self.samples.behind

    def read(self, limit: int = CHUNK) -> None:
        """Take in what is new, at most `limit` bytes of each log."""
        rows, restarted = self.metrics.read(limit)
        if restarted:
            self._empty()
        for row in rows:
            self._take(row)
        rows, restarted = self.samples.read(limit)
        if restarted:
            self.moments = Moments()
        for row in rows:
            self.moments.add(row)

    def _take(self, row: Row) -> None:
        match row.get("kind"):
            case "train":
                self.train.add(row)
                self.recent.append(row)
                self.first = self.first or row
            case "eval":
                self.evals.add(row)
                self.measured = row
            case "eval_whole":  # another measure than those before: no point of their curve
                self.measured = row
            case "event":
                self.events.append({**_place(row), "message": _text(row.get("message"))})

    def config_text(self) -> str:
        """config.toml as it stands; empty where it cannot be read."""
        with suppress(OSError):
            return (self.folder / "config.toml").read_text(encoding="utf-8", errors="replace")
        return ""

    def facts(self, now: float) -> dict[str, Any]:
        """What a list of runs says of it.

        Args:
            now: seconds since 1970.
        """
        config = _config(self.config_text())
        last = self.recent[-1] if self.recent else {}
        age = _age(self.folder, "metrics.jsonl" if last else "config.toml", now)
        state = self.state(config, age)
        share = 1.0 if state == "finished" else progress(config, last)
        return {
            "folder": str(self.folder),
            "stage": str(config.get("stage", "")),
            "length": str(_table(config, "train").get("length", "")),
            "state": state,
            "age": round(age, 1) if age is not None else None,
            **_place(last),
            "progress": share,
            "loss": _mean(self.recent, "loss"),
            "bits_per_byte": _mean(self.recent, "bits_per_byte"),
            "tokens_per_second": _mean(self.recent, "tokens_per_second"),
            "reward": _mean(self.recent, "reward"),
            "skipped": number(last.get("skipped")),
            **{key: number(self.measured.get(key)) for key in HELD_OUT},
            "behind": self.behind,
            "samples": self.moments.version,
            "broken": self.metrics.broken + self.samples.broken,
        }

    def state(self, config: dict[str, Any], age: float | None) -> State:
        """What it is doing, as far as its files show; see `state_of`."""
        return state_of(
            finished=(self.folder / "summary.json").is_file(),
            left=_is_newer(self.folder / "report.html", self.folder / "metrics.jsonl"),
            age=age,
            first=self.first,
            recent=list(self.recent),
            of_tokens=config.get("stage") in OF_TOKENS,
        )


HELD_OUT = ("val_loss", "val_bits_per_byte", "val_reward", "val_accuracy")


def state_of(
    *,
    finished: bool,
    left: bool,
    age: float | None,
    first: Row,
    recent: list[Row],
    of_tokens: bool,
) -> State:
    """What a run is doing.

    Args:
        finished: its summary is there.
        left: its report is newer than its log, which is how a run that was asked to stop ends.
        age: seconds since the last row, or since it began where there is none; None: unknown.
        first: the first training row.
        recent: the newest training rows.
        of_tokens: its loss is that of tokens, so to double is to fail.
    """
    if diverged(first, recent, of_tokens):
        return "diverged"
    if finished:
        return "finished"
    if left or age is None:
        return "stopped"
    if not recent:
        return "waiting" if age < STARTING else "stopped"
    times = [at for row in recent if (at := number(row.get("seconds"))) is not None]
    pace = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0
    return "running" if age < max(SILENT, RECENT * pace) else "stopped"


def diverged(first: Row, recent: list[Row], of_tokens: bool) -> bool:
    """Whether the last three steps had no finite loss and gradient, or the recent loss of tokens
    is twice what it was at the first step.

    >>> diverged({"loss": 4.0}, [{"loss": 9.0, "grad_norm": 1.0}], True)
    True
    """
    bad = [
        number(row.get("loss")) is None or number(row.get("grad_norm")) is None for row in recent
    ]
    if len(bad) >= 3 and all(bad[-3:]):
        return True
    began, now = number(first.get("loss")), _mean(recent, "loss")
    return of_tokens and began is not None and now is not None and now > 2 * began > 0


def progress(config: dict[str, Any], last: Row) -> float | None:
    """The share of a run's length that is done; None where epochs or nothing is known.

    >>> progress({"train": {"length": "200 steps"}}, {"step": 50})
    0.25
    """
    length = _table(config, "train").get("length")
    if not isinstance(length, str) or not last:
        return None
    try:
        span = parse_span(length, key="train.length", units=("steps", "tokens", "seconds"))
    except ConfigError:
        return None
    done = number(last.get("step" if span.unit == "steps" else span.unit))
    return None if done is None else min(done / span.amount, 1.0)


def _config(text: str) -> dict[str, Any]:
    with suppress(tomllib.TOMLDecodeError):
        return tomllib.loads(text)
    return {}


def _table(config: dict[str, Any], name: str) -> dict[str, Any]:
    table = config.get(name)
    return table if isinstance(table, dict) else {}


def _text(value: Any) -> str:
    """Words of a log as a page may show them."""
    return printable(str(value or "")[:TEXT_LENGTH])


def _place(row: Row) -> dict[str, float | None]:
    return {name: number(row.get(name)) for name in ("step", "tokens", "seconds")}


def _mean(rows: Any, key: str) -> float | None:
    values = [value for row in rows if (value := number(row.get(key))) is not None]
    return sum(values) / len(values) if values else None


def _age(folder: Path, name: str, now: float) -> float | None:
    with suppress(OSError):
        return max(now - (folder / name).stat().st_mtime, 0.0)
    return None


def _is_newer(path: Path, than: Path) -> bool:
    with suppress(OSError):
        return path.stat().st_mtime_ns >= than.stat().st_mtime_ns
    return False
