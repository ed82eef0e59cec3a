"""Stages in order: each a run of its own, each from where the one before ended.

runs/x/stages.toml        the list as it was started, options of the command line included
runs/x/1-pretrain/        a run folder
runs/x/2-sft/             another, which starts from the first at its best step
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from sparrowlm import files
from sparrowlm.checkpoint import RunFolder
from sparrowlm.config.check import check_numbers
from sparrowlm.config.line import NamedStage, dump_stages, load_stages, placed, stage_folders
from sparrowlm.config.schema import Recipe
from sparrowlm.errors import RunError
from sparrowlm.runtime import detect
from sparrowlm.train.distributed import attempt, barrier, broadcast_text, process_group

LIST = "stages.toml"

RunStage = Callable[[Recipe, Path, bool], bool]
"""Train a stage: its recipe, its run folder, whether to go on with what is there; whether it was
asked to stop."""


def run_stages(
    stages: Sequence[NamedStage],
    out: Path,
    run: RunStage,
    *,
    resume: bool = False,
    tell: Callable[[str], None] = lambda told: None,
) -> bool:
    """Run stages into folders of `out`.

    Args:
        stages: as read.
        out: the folder that holds their runs.
        run: trains one of them.
        resume: leave out what is finished, go on with what is not.
        tell: hears which stage begins; called on rank 0 only.

    Returns:
        Whether the last one came to its end; False where one was asked to stop.

    Raises:
        ConfigError: a number of a stage is outside of its limits.
        RunError: `out` holds runs and `resume` is False, or the other way round, or other stages.
    """
    for stage in stages:
        check_numbers(stage.recipe, f"stage {stage.name}")
    runtime = detect(stages[0].recipe.train.device, stages[0].recipe.train.precision)
    with process_group(runtime):
        folders = stage_folders(stages, out)
        _check(stages, out, folders, resume or attempt() > 0)
        barrier(runtime)  # nobody writes before all have read
        if runtime.is_main:
            out.mkdir(parents=True, exist_ok=True)
            files.write_text(out / LIST, dump_stages(stages))
        runs = dict(zip((stage.name for stage in stages), folders, strict=True))
        for number, (stage, folder) in enumerate(zip(stages, folders, strict=True), 1):
            recipe = placed(stage, runs)
            finished = is_finished(folder, recipe)
            if runtime.is_main:
                now = "finished before" if finished else str(folder)
                tell(f"stage {number} of {len(stages)}, {stage.name}: {now}")
            if finished:
                continue
            stopped = run(recipe, folder, RunFolder(folder).exists)
            # Rank 0 decides, and has written its summary when the others look for it.
            if broadcast_text("stop" if stopped else "", runtime):
                return number == len(stages) and is_finished(folder, recipe)
    return True


def is_finished(folder: Path, recipe: Recipe) -> bool:
    """Whether a run came to the end that its recipe wants, and its last checkpoint is whole."""
    run, summary = RunFolder(folder), folder / "summary.json"
    if not run.exists or not summary.is_file():
        return False
    if run.recipe().train.length != recipe.train.length:
        return False
    return files.read_json(summary).get("steps") == run.newest()


def _check(stages: Sequence[NamedStage], out: Path, folders: Sequence[Path], resume: bool) -> None:
    """See that `out` is free, or holds these very stages.

    Raises:
        RunError: neither.
    """
    if RunFolder(out).exists:
        fix = "choose another --out"
        raise RunError("holds a single run, not stages", where=str(out), fix=fix)
    there = (out / LIST).is_file()
    if there and not resume:
        fix = "add --resume, or choose another --out"
        raise RunError("holds stages already", where=str(out), fix=fix)
    if resume and not there:
        if attempt() > 0:
            return
        raise RunError("holds no stages to resume", where=str(out), fix="leave out --resume")
    if there:
        _check_started(stages, load_stages(out / LIST), out, folders)


def _check_started(
    stages: Sequence[NamedStage],
    before: Sequence[NamedStage],
    out: Path,
    folders: Sequence[Path],
) -> None:
    """See that what was started stays what it is.

    Raises:
        RunError: a started stage has another name now, or is to be longer although a later one
            has begun from its weights.
    """
    started = [
        number
        for number, folder in enumerate(stage_folders(before, out))
        if RunFolder(folder).exists
    ]
    for number in started:
        was, now = before[number], stages[number] if number < len(stages) else None
        if now is None or now.name != was.name:
            raise RunError(
                f"stage {number + 1} was {was.name} and is now {now.name if now else 'left out'}",
                where=str(out),
                fix="resume with the same stages, or start anew with another --out",
            )
        length, before_length = now.recipe.train.length, was.recipe.train.length
        if length != before_length and number != started[-1]:
            later = stages[started[-1]].name
            raise RunError(
                f"{now.name} was {before_length} long and is now {length}, but {later} has begun"
                " from its weights",
                where=str(out),
                fix=f"leave its length, or move {folders[number + 1]} and what follows away",
            )
