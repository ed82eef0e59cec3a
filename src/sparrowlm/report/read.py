"""A run folder as plain values, whatever of it is there.

A report is wanted most when a run went wrong, so nothing here insists: what is missing or cut off
is said in `faults`, and the rest is shown.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparrowlm.config import Recipe, load_recipe
from sparrowlm.errors import ConfigError, RunError
from sparrowlm.files import read_json

Row = dict[str, Any]
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Run:
    """One run folder, read."""

    folder: Path
    recipe: Recipe | None = None
    config_text: str = ""
    summary: Row = field(default_factory=dict)
    machine: Row = field(default_factory=dict)
    data: Row = field(default_factory=dict)
    train: list[Row] = field(default_factory=list)
    evals: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)
    samples: list[Row] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)  # what is missing or cut, in sentences

    @property
    def name(self) -> str:
        """The folder's own name, also where the path is `.`."""
        return self.folder.name or self.folder.resolve().name

    @property
    def best(self) -> Row:
        """The evaluation with the lowest loss; empty where there is none."""
        losses = [
            (loss, row) for row in self.evals if (loss := number(row.get("val_loss"))) is not None
        ]
        return min(losses, key=lambda pair: pair[0], default=(0.0, {}))[1]

    def figure(self, name: str) -> float | None:
        """A number of the summary; without one, what the log holds: of the best evaluation, else
        the newest.

        A run that is still going, or was killed, has no summary.
        """
        if name in self.summary:
            return number(self.summary[name])
        key = _IN_LOG.get(name, name)
        if name.startswith("val_"):
            return number(self.best.get(key))
        values = (number(row.get(key)) for row in reversed(self.train))
        return next((value for value in values if value is not None), None)


_IN_LOG = {"steps": "step", "train_loss": "loss", "wall_seconds": "seconds"}
_IN_LOG |= {"peak_memory_bytes": "memory_bytes"}


def read_run(folder: Path) -> Run:
    """Read what a run left.

    Raises:
        RunError: no such folder, or nothing in it is a run's.
    """
    if not folder.is_dir():
        raise RunError("no such run", where=str(folder), fix="give the folder that --out named")
    if not any((folder / name).is_file() for name in ("config.toml", "metrics.jsonl")):
        raise RunError(
            "is not a run", where=str(folder), why="it holds neither config.toml nor metrics.jsonl"
        )
    faults: list[str] = []
    recipe, text = _recipe(folder / "config.toml", faults)
    rows = _rows(folder / "metrics.jsonl", faults)
    facts = _object(folder / "machine.json", faults)
    data, summary = _table(facts, "data"), folder / "summary.json"
    trained = not data.get("imported from")  # what was imported has nothing to finish
    return Run(
        folder=folder,
        recipe=recipe,
        config_text=text,
        summary=_object(summary, faults) if trained or summary.is_file() else {},
        machine=_table(facts, "machine"),
        data=data,
        train=[row for row in rows if row.get("kind") == "train"],
        evals=[row for row in rows if row.get("kind") == "eval"],
        events=[row for row in rows if row.get("kind") == "event"],
        samples=_rows(folder / "samples.jsonl", faults),
        faults=faults,
    )


def points(rows: list[Row], key: str, x: str = "step") -> Points:
    """(x, value) of the rows where both are finite numbers; x is `step` or `seconds`."""
    found: Points = []
    for row in rows:
        value = number(row.get(key))
        if value is not None and (at := number(row.get(x))) is not None:
            found.append((at, value))
    return found


def number(value: Any) -> float | None:
    """A finite number, or None for whatever else a log holds."""
    kind = type(value)  # exact types, for a bool is an int; and this is asked of every value
    return float(value) if (kind is float or kind is int) and math.isfinite(value) else None


def _recipe(path: Path, faults: list[str]) -> tuple[Recipe | None, str]:
    """The recipe, or at least its text where another version wrote it."""
    if not path.is_file():
        faults.append("There is no config.toml.")
        return None, ""
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        return load_recipe(path), text
    except ConfigError as fault:
        faults.append(f"config.toml is shown as it stands, for it does not fit: {fault.what}.")
        return None, text


def _object(path: Path, faults: list[str]) -> Row:
    try:
        value = read_json(path)
    except RunError as fault:
        missing = "This run has not finished" if path.stem == "summary" else "Something is missing"
        faults.append(f"{missing}: {path.name} {_predicate(fault.what)}.")
        return {}
    if isinstance(value, dict):
        return value
    faults.append(f"{path.name} is no JSON object.")
    return {}


def _table(facts: Row, name: str) -> Row:
    inner = facts.get(name)
    return inner if isinstance(inner, dict) else {}


def _predicate(what: str) -> str:
    return "is not there" if what == "no such file" else what


def _rows(path: Path, faults: list[str]) -> list[Row]:
    """The objects of a JSON-lines file; a cut last line is what a killed run leaves."""
    if not path.is_file():
        faults.append(f"There is no {path.name}.")
        return []
    rows: list[Row] = []
    broken: list[int] = []
    lines = path.read_bytes().splitlines()
    for line_number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:  # JSON's and UTF-8's faults alike
            broken.append(line_number)
            continue
        if isinstance(row, dict):
            rows.append(row)
    if broken == [len(lines)]:
        faults.append(f"The last line of {path.name} is cut off, as a killed run leaves it.")
    elif broken:
        shown = ", ".join(map(str, broken[:5])) + (" …" if len(broken) > 5 else "")
        faults.append(f"{path.name} has lines that are not JSON, left out here: {shown}.")
    return rows
