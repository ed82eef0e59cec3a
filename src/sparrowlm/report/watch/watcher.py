"""All runs below some folders, and the answers that the page asks for."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparrowlm.report.watch.compare import defaults, differences
from sparrowlm.report.watch.follow import CHUNK
from sparrowlm.report.watch.run import WatchedRun

MOST = 200  # runs that are followed at once
DEPTH = 2  # levels below a named folder: runs/NAME, and runs/LINE/1-NAME
AT_ONCE = 0.25  # seconds of reading before an answer; what is left follows with the next


class Watcher:
    """Follows the runs in some folders. Several threads may ask.

    Args:
        roots: run folders, or folders that hold some, now or later.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = tuple(roots)
        self.runs: dict[str, WatchedRun] = {}
        self.left_out = 0
        self._turn: deque[str] = deque()
        self._lock = threading.Lock()

    def overview(self) -> dict[str, Any]:
        """Read what is new; then say of every run what it is and how it does."""
        with self._lock:
            self._find()
            self._read()
            now = time.time()
            return {
                "roots": [str(root) for root in self.roots],
                "runs": [{"id": name, **run.facts(now)} for name, run in self.runs.items()],
                "left_out": self.left_out,
            }

    def series(self, name: str, known: str) -> dict[str, Any] | None:
        """The curves of a run, or what is new in them.

        Args:
            name: of the run.
            known: the `known` of the last answer; empty for all of it.

        Returns:
            `train` and `evals` as `Track.part`, from the last bucket that was told on (it may have
            been half full), the events, and `known`. None where there is no such run.
        """
        with self._lock:
            run = self.runs.get(name)
            if run is None:
                return None
            tracks = {"train": run.train, "evals": run.evals}
            said = known.split(",")
            now, parts = [str(run.generation)], {}
            for place, (kind, track) in enumerate(tracks.items(), 1):
                same = len(said) == 3 and said[0] == now[0] and "x" in said[place]
                width, _, length = said[place].partition("x") if same else ("", "", "")
                fits = width == str(track.width) and length.isdigit()
                parts[kind] = track.part(int(length) - 1 if fits else 0)
                now.append(f"{track.width}x{len(track)}")
            return {**parts, "events": list(run.events), "known": ",".join(now)}

    def samples(self, name: str) -> dict[str, Any] | None:
        """What a run wrote, step by step; None where there is no such run."""
        with self._lock:
            run = self.runs.get(name)
            if run is None:
                return None
            return {"moments": run.moments.told(), "version": run.moments.version}

    def difference(self, a: str, b: str) -> list[dict[str, str]] | None:
        """What differs between the settings of two runs; an empty name stands for the defaults.
        None where there is no such run."""
        texts = []
        with self._lock:
            for name in (a, b):
                run = self.runs.get(name)
                if run is None and name:
                    return None
                texts.append(run.config_text() if run else defaults())
        return [entry._asdict() for entry in differences(*texts)]

    def _find(self) -> None:
        """Take in runs that are new, and drop those that are gone."""
        found = find_runs(self.roots)
        self.left_out = max(len(found) - MOST, 0)
        found = dict(list(found.items())[:MOST])
        for name, folder in found.items():
            if name not in self.runs:
                self.runs[name] = WatchedRun(folder)
                self._turn.append(name)
        self.runs = {name: self.runs[name] for name in found}

    def _read(self) -> None:
        """Read on, each run in its turn, as long as an answer may take; at least one of them.

        Every run is looked at once, and those that have more then take turns."""
        self._turn = deque(name for name in self._turn if name in self.runs)
        end = time.monotonic() + AT_ONCE
        unseen = set(self._turn)
        while unseen or any(run.behind for run in self.runs.values()):
            name = self._turn[0]
            self._turn.rotate(-1)
            if name in unseen or self.runs[name].behind:
                self.runs[name].read(CHUNK)
                unseen.discard(name)
            if time.monotonic() > end:
                return


def find_runs(roots: Sequence[Path]) -> dict[str, Path]:
    """{name: folder} of the runs that are or lie below some folders, in their order.

    A name is the path below the folder that was given (`notes`, `line/1-pretrain`), or the run's
    own, where the folder is the run; the whole path where two would have the same.
    """
    found: dict[str, Path] = {}
    for root in roots:
        for folder in _runs_below(root, DEPTH):
            inside = folder.relative_to(root).as_posix()
            name = (root.name or root.resolve().name) if inside == "." else inside
            same = name in found and found[name].resolve() != folder.resolve()
            found[str(folder) if same else name] = folder
    return found


def _runs_below(folder: Path, depth: int) -> list[Path]:
    if any((folder / name).is_file() for name in ("config.toml", "metrics.jsonl")):
        return [folder]
    if not depth:
        return []
    try:
        inner = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:  # not there yet, or not ours to read
        return []
    below = [_runs_below(path, depth - 1) for path in inner if not path.name.startswith(".")]
    return [run for runs in below for run in runs]
