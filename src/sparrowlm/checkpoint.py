"""A run folder, written and read.

    config.toml  summary.json  machine.json  metrics.jsonl  samples.jsonl  report.html  loss.png
    tokenizer/
    asked.json                  of a run with a teacher, reference or reward model: which step of it
    reference/                  of dpo: what the reference said of the data
    base/{model.safetensors, base.json, manifest.json}    of a LoRA run: what it adapts
    adapter/                    of a LoRA run that ended: PEFT's files
    sinks/                      what other loggers keep
    checkpoints/
      step-00001000/{model.safetensors, trainer.safetensors, state.json, manifest.json}
      best.json  last.json          each names a step
    .lock                       while a process trains it; on Windows it stays, empty

A checkpoint appears under its name complete or not at all, so the newest folder that verifies is
the one to resume from; `last.json` and `best.json` only say what is there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparrowlm import files
from sparrowlm.config import Recipe, load_recipe
from sparrowlm.data.lock import locked
from sparrowlm.errors import EnvironmentFault, RunError
from sparrowlm.model.lora import changes_of, merge


@dataclass(frozen=True)
class State:
    """What a run knows beside its tensors; `state.json`."""

    step: int = 0  # Updates applied or skipped so far
    tokens: int = 0  # Tokens gone through
    seconds: float = 0.0  # Wall time spent, over all sittings
    skipped: int = 0  # Steps left out because a loss or gradient was not finite
    skipped_in_a_row: int = 0
    micro_batch_size: int = 0  # As memory allowed
    total_steps: int = 0  # Length of the run; 0 while a run of minutes has not decided
    cooldown_steps: int = 0
    loss_scale: float = 1.0  # float16 only
    loss_scale_age: int = 0  # Steps since the scale last changed
    best_step: int = 0  # 0: never measured
    best_val_loss: float | None = None
    best_val_reward: float | None = None  # Of stages that are rewarded, instead of the loss
    threads: int = 0  # Of the last sitting; results are bit-equal for the same number
    world_size: int = 1
    data_fingerprint: str = ""
    tokenizer_fingerprint: str = ""
    log_bytes: dict[str, int] = field(default_factory=dict)  # Where each log stood


@dataclass(frozen=True)
class Checkpoint:
    """One saved step."""

    state: State
    model: dict[str, Tensor]
    """Of a LoRA run the adapters alone: `RunFolder.weights` gives the whole."""
    trainer: dict[str, Tensor]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The trainer's tensors whose names begin with `prefix` ("optimizer/", "objective/",
        "stream/"), without it."""
        held = self.trainer.items()
        return {name[len(prefix) :]: value for name, value in held if name.startswith(prefix)}


class RunFolder:
    """The files of one run.

    Args:
        path: the folder; created by `create`.
    """

    LOGS = ("metrics.jsonl", "samples.jsonl")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.base = path / "base"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the one process that trains this run, for the length of a `with` block and no longer
        than the process lives. A folder made for that is removed again where nothing came of it.

        Raises:
            RunError: another process trains it.
        """
        made = not self.path.exists()
        try:
            with locked(self.path, wait=False, inside=True):
                yield
        finally:
            if made:
                with suppress(OSError):  # it is not empty
                    self.path.rmdir()

    def create(self) -> None:
        """Make the folder; what killed writers left in it is removed: `held` keeps others out.

        A new run shows its metrics and samples from the start, empty.
        """
        with files.disk_faults(self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            files.sweep(self.path)
            files.sweep(self.checkpoints)
            for name in self.LOGS:
                (self.path / name).touch()

    @property
    def exists(self) -> bool:
        """Whether a run was started here."""
        return (self.path / "config.toml").is_file()

    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return load_recipe(self.path / "config.toml")

    def steps(self) -> list[int]:
        """The steps that were saved, in order."""
        names = [path.name for path in self.checkpoints.glob("step-*") if path.is_dir()]
        return sorted(int(name[5:]) for name in names if name[5:].isdigit())

    def folder(self, step: int) -> Path:
        """Where the checkpoint of `step` is or will be."""
        return self.checkpoints / f"step-{step:08d}"

    def save(self, checkpoint: Checkpoint, keep_last: int) -> None:
        """Write a checkpoint, name it in `last.json` and `best.json`, drop old ones."""
        state = checkpoint.state
        final = self.folder(state.step)
        with files.publish(final, replace=True) as work:
            save_tensors(checkpoint.model, work / "model.safetensors")
            save_tensors(checkpoint.trainer, work / "trainer.safetensors")
            files.write_json(work / "state.json", asdict(state))
        self.point(state)
        # Later ones are damaged: the run has gone on from before them.
        for step in [step for step in self.steps() if step <= state.step][:-keep_last]:
            if step != state.best_step:
                _remove(self.folder(step))

    def point(self, state: State) -> None:
        """Write `last.json` and `best.json`."""
        files.write_json(self.checkpoints / "last.json", {"step": state.step})
        if state.best_step:
            best = {"step": state.best_step, "val_loss": state.best_val_loss}
            if state.best_val_reward is not None:
                best["val_reward"] = state.best_val_reward
            files.write_json(self.checkpoints / "best.json", best)

    def newest(self) -> int:
        """The newest step whose files equal its manifest; 0 where there is none.

        Raises:
            RunError: checkpoints exist, and none of them verifies.
        """
        steps = self.steps()
        fault: RunError | None = None
        for step in reversed(steps):
            try:
                files.verify(self.folder(step))
                return step
            except RunError as problem:
                fault = problem
        if fault is not None:
            raise fault
        return 0

    def best(self) -> int:
        """The step to use a finished run at: the best measured one, else the newest.

        Raises:
            RunError: nothing was saved here.
        """
        pointer = self.checkpoints / "best.json"
        step = files.read_json(pointer)["step"] if pointer.is_file() else 0
        step = step if step in self.steps() else self.newest()
        if not step:
            fix = "train it first" if not self.exists else "let it train until it saves"
            raise RunError("holds no checkpoint", where=str(self.path), fix=fix)
        return step

    def load(self, step: int) -> Checkpoint:
        """Read a checkpoint onto the CPU.

        Raises:
            RunError: a file is missing or differs from its manifest.
        """
        folder = self.folder(step)
        files.verify(folder)
        return Checkpoint(
            state=_state(files.read_json(folder / "state.json"), folder),
            model=load_file(folder / "model.safetensors"),
            trainer=load_file(folder / "trainer.safetensors"),
        )

    def weights(self, step: int) -> dict[str, Tensor]:
        """The weights of a plain model at a step, onto the CPU: those of a LoRA run with its
        adapters merged into its base.

        Raises:
            RunError: a file is missing or differs from its manifest.
        """
        saved, lora = self.load(step).model, self.recipe().lora
        if not lora.rank:
            return saved
        return merge(self.load_base(), changes_of(saved, lora.alpha))

    def save_base(self, weights: dict[str, Tensor], origin: str) -> None:
        """Keep what a LoRA run adapts, once.

        Args:
            weights: of the plain model.
            origin: where they come from, for people.
        """
        facts = {"from": origin, "fingerprint": fingerprint(weights)}
        with files.publish(self.base, replace=True) as work:
            save_tensors(weights, work / "model.safetensors")
            files.write_json(work / "base.json", facts)

    def load_base(self) -> dict[str, Tensor]:
        """The weights that a LoRA run adapts, onto the CPU.

        Raises:
            RunError: a file is missing or differs from its manifest.
        """
        files.verify(self.base)
        return load_file(self.base / "model.safetensors")

    def base_facts(self) -> dict[str, str]:
        """Of a LoRA run's base: `from`, and the `fingerprint` of its weights."""
        return files.read_json(self.base / "base.json")

    def imported_from(self) -> str:
        """The project that a run was imported from; empty where it was trained here."""
        path = self.path / "machine.json"
        facts = files.read_json(path).get("data") if path.is_file() else None
        return str(facts.get("imported from") or "") if isinstance(facts, dict) else ""

    def append(self, log: str, row: dict[str, Any]) -> None:
        """Add a row to a log. It is in the file at once, and on the disk at the next checkpoint."""
        path = self.path / log
        with files.disk_faults(path), path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def log_bytes(self) -> dict[str, int]:
        """How long each log is, once it is on the disk."""
        sizes = {}
        for name in self.LOGS:
            with (self.path / name).open("ab") as file:
                os.fsync(file.fileno())
                sizes[name] = file.tell()
        return sizes

    def cut_logs(self, sizes: dict[str, int]) -> None:
        """Cut the logs back to where a checkpoint left them; to nothing where it says nothing. One
        that is shorter, since it was lost, stays as it is."""
        for name in self.LOGS:
            path = self.path / name
            os.truncate(path, min(sizes.get(name, 0), path.stat().st_size))

    def rows(self, log: str) -> Iterator[dict[str, Any]]:
        """The rows of a log; a last line that a kill cut short is left out."""
        path = self.path / log
        if not path.is_file():
            return
        with path.open(encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):
                    yield json.loads(line)


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of weights by name, type, shape and value, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def find_run(path: Path) -> tuple[RunFolder, int]:
    """A run folder and a step from what a person typed: a run, or one of its checkpoints.

    Raises:
        RunError: neither.
    """
    if path.name.startswith("step-") and (path / "state.json").is_file():
        return RunFolder(path.parent.parent), int(path.name[5:])
    run = RunFolder(path)
    if not run.exists:
        stages = sorted(str(inner.parent) for inner in path.glob("[0-9]*-*/config.toml"))
        if stages:
            fix = f"give one of them: {', '.join(stages)}"
            raise RunError("holds the runs of several stages", where=str(path), fix=fix)
        raise RunError("is not a run folder", where=str(path), fix="give the folder of --out")
    return run, run.best()


def _state(values: dict[str, Any], folder: Path) -> State:
    known = {entry.name for entry in fields(State)}
    if unknown := set(values) - known:
        raise RunError(
            f"has unknown entries {sorted(unknown)}",
            where=str(folder / "state.json"),
            fix="it was written by a newer version; update this one",
        )
    return State(**values)


def save_tensors(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file inside of a folder that is being published."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(plain, path, metadata)
    except SafetensorError as fault:
        # The library words the system's error; 28 is ENOSPC.
        if "os error 28" in str(fault):
            raise EnvironmentFault(
                "no space left on the device",
                where=str(path.parent.parent),
                why="the checkpoint before this one is kept",
                fix="free some space, then run the same command with --resume",
            ) from fault
        raise


def _remove(folder: Path) -> None:
    """Drop a checkpoint: out of sight in one rename, then file by file."""
    aside = folder.with_name(f"{files.TEMPORARY}{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)
