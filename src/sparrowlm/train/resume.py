"""Where a run goes on, and what may not have changed until then."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from sparrowlm.checkpoint import Checkpoint, RunFolder, State
from sparrowlm.config import Recipe
from sparrowlm.data.sequences import AnyDataset
from sparrowlm.errors import RunError
from sparrowlm.runtime import Runtime


def resume_point(
    run: RunFolder, recipe: Recipe, dataset: AnyDataset, runtime: Runtime
) -> tuple[Checkpoint | None, list[str]]:
    """Where to go on, and what is different this time.

    Returns:
        The newest checkpoint, or None where there is none yet, and sentences for the log.

    Raises:
        RunError: nothing to resume, or another architecture, tokenizer or dataset.
    """
    if not run.exists:
        raise RunError("holds no run to resume", where=str(run.path), fix="leave out --resume")
    before = run.recipe()
    changes = _differences(before, recipe, run.path)
    step = run.newest()
    if not step:
        return None, [*changes, "no checkpoint yet: starting again from step 0"]
    checkpoint = run.load(step)
    check_data(checkpoint.state, dataset, run.path)
    told = [f"resumed at step {step}", *changes]
    if checkpoint.state.world_size != runtime.world_size:
        told.append(f"on {runtime.world_size} ranks, before on {checkpoint.state.world_size}")
    state = replace(checkpoint.state, world_size=runtime.world_size)
    if recipe.train.length != before.train.length:
        state = replace(state, total_steps=0, cooldown_steps=0)
    return replace(checkpoint, state=state), told


def _differences(old: Recipe, new: Recipe, where: Path) -> list[str]:
    """What a resumed run changes.

    Raises:
        RunError: the architecture, its adapters or the stage.
    """
    before, after = asdict(old), asdict(new)
    refused, told = [], []
    for table, values in before.items():
        entries = values.items() if isinstance(values, dict) else [("", values)]
        for key, value in entries:
            now = after[table][key] if key else after[table]
            if now == value:
                continue
            line = f"{table}{'.' if key else ''}{key.rstrip('_')} was {value} and is now {now}"
            fixed = table in ("model", "stage", "lora") and key != "dropout"
            (refused if fixed else told).append(line)
    if refused:
        raise RunError(
            "was trained with another architecture: " + "; ".join(refused),
            where=str(where),
            fix="resume with the same [model], or start a new run with --out",
        )
    return told


def check_data(state: State, dataset: AnyDataset, where: Path) -> None:
    """
    Raises:
        RunError: the run at `where` was trained on other data, or with another vocabulary.
    """
    tokenizer = dataset.tokenizer.fingerprint if dataset.tokenizer else ""
    for what, before, now in (
        ("tokenizer", state.tokenizer_fingerprint, tokenizer),
        ("dataset", state.data_fingerprint, dataset.fingerprint),
    ):
        if before != now:
            raise RunError(
                f"was trained with another {what} (fingerprint {before[:12]}, now {now[:12]})",
                where=str(where),
                fix=f"give the {what} it was trained with, or start a new run that has"
                " init.from set to this one",
            )
