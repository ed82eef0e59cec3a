"""Which checkpoints a run asks to its end.

A teacher, the reference of a rollout and a reward model are runs of their own, which may be trained
on. Their best step of the day would be another model after an interruption than before it, so a run
keeps in `asked.json` which step it asked first, and the hash of that step's weights.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from sparrowlm import files
from sparrowlm.checkpoint import RunFolder, find_run
from sparrowlm.config import Recipe
from sparrowlm.errors import RunError

FILE = "asked.json"
Asked = dict[str, dict[str, Any]]
"""Of each setting: "named" in the recipe, "step", its "checkpoint" and the "weights" in it."""


def asked_of(recipe: Recipe, run: RunFolder | None) -> Asked:
    """What a recipe's stage asks at every step.

    Args:
        recipe: as it is to run.
        run: that goes on, whose own record holds for what is still named the same; None at the
            start.

    Raises:
        RunError: no run there, or the step that was asked first is gone or holds other weights.
    """
    path = run.path / FILE if run else None
    kept: Asked = files.read_json(path) if path and path.is_file() else {}
    found: Asked = {}
    for setting, (table, key) in _settings(recipe).items():
        named = getattr(getattr(recipe, table), key)
        if not named:
            continue  # refused with its name where it is loaded
        source, step = find_run(Path(named))
        before = kept.get(setting)
        if before is None or before["named"] != named:
            found[setting] = {"named": named, **_facts(source.folder(step))}
            continue
        first = source.folder(before["step"])
        there = (first / files.MANIFEST).is_file()
        if not there or _facts(first)["weights"] != before["weights"]:
            raise RunError(
                f"step {before['step']} is {'another one now' if there else 'gone'}",
                where=f"{setting}, {named}",
                why="this run has asked it since it began, and others say other things",
                fix=f'put it back, or go on with another: {setting} = "{source.folder(step)}"',
            )
        found[setting] = {**before, "checkpoint": str(first)}
    return found


def pinned(recipe: Recipe, asked: Asked) -> Recipe:
    """The recipe with these very checkpoints for the runs that it names."""
    for setting, (table, key) in _settings(recipe).items():
        if one := asked.get(setting):
            changed = replace(getattr(recipe, table), **{key: one["checkpoint"]})
            recipe = replace(recipe, **{table: changed})
    return recipe


def _settings(recipe: Recipe) -> dict[str, tuple[str, str]]:
    """The settings that name what is asked, by their names: a table and a field of it."""
    if recipe.stage == "distill":
        return {"distill.teacher": ("distill", "teacher")}
    if recipe.stage not in ("grpo", "ppo"):
        return {}
    reference = {"init.from": ("init", "from_")} if recipe.policy.kl_weight else {}
    return reference | {"rollout.reward_model": ("rollout", "reward_model")}


def _facts(checkpoint: Path) -> dict[str, Any]:
    held = files.read_json(checkpoint / files.MANIFEST)["files"]["model.safetensors"]
    step = int(checkpoint.name.removeprefix("step-"))
    return {"step": step, "checkpoint": str(checkpoint), "weights": held["sha256"]}
