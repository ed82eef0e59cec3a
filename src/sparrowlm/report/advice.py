"""Commands to go on with, and to get the same run again."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from sparrowlm.config import Recipe, learns_to_answer
from sparrowlm.report.read import Run

Command = tuple[str, str]  # what to type, what it does


def next_commands(folder: Path, recipe: Recipe | None = None) -> list[Command]:
    """What to try after a run.

    Args:
        folder: of the run.
        recipe: its own; where it trained on conversations, talking comes first.
    """
    answers = recipe is not None and learns_to_answer(recipe)
    run, recipe_file = _quoted(folder), _quoted(folder / "config.toml")
    write = [
        (f'sparrow generate {run} --prompt "…"', "let it go on from words of yours"),
        (f"sparrow chat {run}", "write with it, piece by piece"),
    ]
    talk = [
        (f"sparrow chat {run}", "talk with it"),
        (f"sparrow serve {run}", "a page to talk with it, and an API for other programs"),
    ]
    return [
        *(talk if answers else write),
        (
            f'sparrow train {recipe_file} --out {run} --resume --train.length "…"',
            "train on, for a longer length",
        ),
        (f"sparrow tokenizer inspect {_quoted(folder / 'tokenizer')}", "see how it cuts text"),
        (f"sparrow report {run}", "draw this report again"),
    ]


def reproduce(run: Run) -> Command:
    """The command that repeats a run, and how exactly it does so."""
    again = run.folder.with_name(f"{run.name}-again")
    command = f"sparrow train {_quoted(run.folder / 'config.toml')} --out {_quoted(again)}"
    versions = [
        f"{name} {run.machine[key]}"
        for key, name in (("sparrow", "Sparrow"), ("python", "Python"), ("torch", "PyTorch"))
        if key in run.machine
    ]
    told = f"This run used {_and(versions)}. " if versions else ""
    if "threads" in run.machine:
        count = run.machine["threads"]
        told += f"It is repeated bit for bit on a CPU with the same versions and {count} thread"
        told += "s. " if count != 1 else ". "
    if run.recipe is not None and _in_time(run.recipe.train.length):
        told += (
            f"Its length is a time ({run.recipe.train.length}), so a faster machine takes more "
            "steps; give the steps in its place to repeat it exactly."
        )
    return command, told.strip()


def _in_time(length: str) -> bool:
    return any(unit in length.lower() for unit in ("second", "minute", "hour"))


def _quoted(path: Path) -> str:
    """A path as this system's shell takes it."""
    text = str(path)
    if sys.platform == "win32":
        return f'"{text}"' if " " in text else text
    return shlex.quote(text)


def _and(items: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))
