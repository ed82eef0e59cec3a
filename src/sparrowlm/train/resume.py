"""Where a run goes on, and what may not have changed until then."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch

from sparrowlm.checkpoint import Checkpoint, RunFolder, State
from sparrowlm.config import Recipe
from sparrowlm.data.sequences import AnyDataset
from sparrowlm.errors import RunError
from sparrowlm.runtime import Runtime
from sparrowlm.train.trainer import LOSS_SCALE_START


def as_begun(recipe: Recipe, run: RunFolder) -> Recipe:
    """The recipe with the run's own micro-batch where it leaves that to the memory, of which there
    may be more or less today: other micro-batches add up to other last bits."""
    size = recipe.train.micro_batch_size or run.recipe().train.micro_batch_size
    return replace(recipe, train=replace(recipe.train, micro_batch_size=size))


def resume_point(
    run: RunFolder, recipe: Recipe, dataset: AnyDataset, runtime: Runtime
) -> tuple[Checkpoint | None, list[str]]:
    """Where to go on, and what is different this time.

    Returns:
        The newest checkpoint, or None where there is none yet, and sentences for the log.

    Raises:
        RunError: nothing to resume, or another architecture, optimizer, tokenizer or dataset.
    """
    if not run.exists:
        raise RunError("holds no run to resume", where=str(run.path), fix="leave out --resume")
    before = run.recipe()
    told, refused = _differences(before, recipe)
    step = run.newest()
    if not step:  # nothing that other settings would not fit
        return None, [*told, *refused, "no checkpoint yet: starting again from step 0"]
    if refused:
        raise RunError(
            "was trained with another architecture: " + "; ".join(refused),
            where=str(run.path),
            fix="resume with the same [model], or start a new run with --out",
        )
    checkpoint = run.load(step)
    _check_optimizer(checkpoint, before, recipe, run.path)
    check_data(checkpoint.state, dataset, run.path)
    state, changes = _state_now(checkpoint.state, before, recipe, runtime)
    return replace(checkpoint, state=state), [f"resumed at step {step}", *told, *changes]


def _differences(old: Recipe, new: Recipe) -> tuple[list[str], list[str]]:
    """What a resumed run changes: what may be, and what its weights would not fit: the
    architecture, its adapters, the stage."""
    before, after = asdict(old), asdict(new)
    told, refused = [], []
    for table, values in before.items():
        entries = values.items() if isinstance(values, dict) else [("", values)]
        for key, value in entries:
            now = after[table][key] if key else after[table]
            if now == value:
                continue
            line = f"{table}{'.' if key else ''}{key.rstrip('_')} was {value} and is now {now}"
            fixed = table in ("model", "stage", "lora") and key != "dropout"
            (refused if fixed else told).append(line)
    return told, refused


def _check_optimizer(checkpoint: Checkpoint, old: Recipe, new: Recipe, where: Path) -> None:
    """
    Raises:
        RunError: the optimizer's buffers are those of another one.
    """
    if old.optim.name != new.optim.name and checkpoint.under("optimizer/"):
        raise RunError(
            f"was trained with optimizer {old.optim.name}, and optim.name is now {new.optim.name}",
            where=str(where),
            why="what one optimizer remembers of its steps means nothing to the other",
            fix=f'resume with optim.name = "{old.optim.name}", or start a new run that has'
            " init.from set to this one",
        )


def _state_now(
    state: State, before: Recipe, recipe: Recipe, runtime: Runtime
) -> tuple[State, list[str]]:
    """A saved state as this machine and these settings go on with it, and what to tell of that."""
    threads, told = torch.get_num_threads(), []
    if state.world_size != runtime.world_size:
        told.append(f"on {runtime.world_size} ranks, before on {state.world_size}")
    if state.threads not in (0, threads):  # 0: of a run that was not trained here
        why = "sums may differ in their last bits"
        told.append(f"on {threads} threads, before on {state.threads}: {why}")
    state = replace(state, world_size=runtime.world_size, threads=threads)
    if recipe.train.length != before.train.length:
        state = replace(state, total_steps=0, cooldown_steps=0)
    # Compared with what was asked for before: the state's may have been halved since.
    if recipe.train.micro_batch_size != before.train.micro_batch_size:
        state = replace(state, micro_batch_size=recipe.train.micro_batch_size)
    if runtime.precision == "float16" and state.loss_scale == 1.0:  # other precisions have none
        state = replace(state, loss_scale=LOSS_SCALE_START, loss_scale_age=0)
    return state, told


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
