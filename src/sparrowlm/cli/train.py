"""`sparrow train RECIPE`: any key of the recipe is an option."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from sparrowlm.config import Recipe, find_recipe, has_stages, load_recipe
from sparrowlm.errors import UserError


@dataclass(frozen=True)
class Options:
    """Train by a recipe. Any of its keys can be set: --train.length "200 steps"."""

    recipe: tyro.conf.Positional[Path]  # A TOML file, or the name of one that Sparrow brings
    settings: Annotated[Recipe, tyro.conf.arg(name="")]
    out: Path | None = None  # The run folder; runs/<recipe> where not given
    resume: bool = False  # Go on where the run in --out stands


def parse_train(arguments: list[str]) -> None:
    """Read the recipe first: its values are the options' defaults, and help shows them."""
    if (path := recipe_with_stages(arguments)) is not None:
        from sparrowlm.cli.stages import train_stages

        train_stages(path, arguments[1:])
        return
    path, settings = recipe_and_overrides(arguments)
    default = Options(path, settings)
    options = tyro.cli(Options, args=named(arguments), default=default, prog="sparrow train")
    out = options.out or Path("runs") / path.stem
    if run_training(options.settings, out, resume=options.resume) is not None:
        from sparrowlm.cli.show import show_ending

        show_ending(out)


def recipe_with_stages(arguments: list[str]) -> Path | None:
    """The first word, where it is a recipe that lists stages."""
    if not arguments or arguments[0].startswith("-"):
        return None
    path = find_recipe(arguments[0])
    return path if has_stages(path) else None


def recipe_and_overrides(arguments: list[str]) -> tuple[Path, Recipe]:
    """The first word, which is the recipe; help may be asked for without one.

    Raises:
        UserError: an option stands first.
        ConfigError: no such recipe, or faults in it.
    """
    if arguments and not arguments[0].startswith("-"):
        path = find_recipe(arguments[0])
        return path, load_recipe(path)
    if "-h" in arguments or "--help" in arguments:
        return Path("RECIPE"), Recipe()
    raise UserError(
        "the recipe comes first",
        where="sparrow train",
        fix="sparrow train recipes/shakespeare-char-cpu.toml --data.path FILE",
    )


def named(arguments: list[str]) -> list[str]:
    """`--init.from` as the field that stands for it: `from` is a word Python keeps for itself."""
    flag = "--init.from"
    return [
        flag + "_" + argument[len(flag) :] if argument.split("=")[0] == flag else argument
        for argument in arguments
    ]


def run_training(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool,
    dataset_folder: Path | None = None,
) -> dict[str, Any] | None:
    """Train, show it, and stop on SIGTERM or Ctrl-C after the step under way.

    Args:
        recipe: as read.
        out: the run folder.
        resume: go on with what is there.
        dataset_folder: prepared already.

    Returns:
        The summary, or None where it was stopped.
    """
    with asked_to_stop() as should_stop:
        summary = train_and_show(recipe, out, should_stop, resume=resume, folder=dataset_folder)
    if summary is None and should_stop():
        # The run's own recipe: it holds what was overridden on the command line too.
        again = f"sparrow train {out / 'config.toml'} --out {out} --resume"
        print(f"\nstopped and saved; go on with: {again}")
    return summary


def train_and_show(
    recipe: Recipe,
    out: Path,
    should_stop: Callable[[], bool],
    *,
    resume: bool,
    folder: Path | None = None,
) -> dict[str, Any] | None:
    """Train and show it; `folder` holds the data where it is prepared already.

    Returns:
        The summary, or None where it was stopped.
    """
    from sparrowlm.cli.show import Display, PrepareProgress
    from sparrowlm.pipeline import train

    with PrepareProgress() as progress:
        display = Display(recipe=recipe, progress=progress)
        try:
            return train(
                recipe,
                out,
                display,
                resume=resume,
                should_stop=should_stop,
                progress=progress,
                dataset_folder=folder,
            )
        finally:
            display.close()


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM or Ctrl-C came, as a question that the trainer asks after every step.

    Until it asks for the first time there is nothing to save, and a signal ends the program. From
    then on the first one lets the step finish; a second Ctrl-C ends at once, which loses what the
    last checkpoint does not hold and nothing else.
    """
    heard: list[int] = []
    training = False

    def hear(number: int, frame: object) -> None:
        if heard or not training:
            raise KeyboardInterrupt
        heard.append(number)

    def ask() -> bool:
        nonlocal training
        training = True
        return bool(heard)

    before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield ask
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
