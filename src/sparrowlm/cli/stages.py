"""`sparrow train LINE.toml` where the recipe lists stages, and which option is for which stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rich.console import Console
from rich.text import Text

from sparrowlm.config.line import NamedStage, check_references, load_stages, stage_folders
from sparrowlm.config.load import near_miss
from sparrowlm.config.schema import Recipe
from sparrowlm.errors import ConfigError

TABLES = tuple(field.name for field in fields(Recipe) if is_dataclass(field.default_factory))


class HasSettings(Protocol):
    """The options of a command that takes a recipe."""

    @property
    def settings(self) -> Recipe:
        """The recipe, with what the command line says of it."""
        ...


Chosen = TypeVar("Chosen", bound=HasSettings)


def train_stages(path: Path, arguments: list[str]) -> None:
    """Run the stages of a recipe, and say how to go on where they are stopped."""
    from sparrowlm.cli.show import show_ending
    from sparrowlm.cli.train import Options, asked_to_stop, train_and_show
    from sparrowlm.line import LIST, run_stages

    stages, options = read_stages(path, arguments, Options, "sparrow train")
    out = options.out or Path("runs") / path.stem
    console = Console(highlight=False)

    def run(recipe: Recipe, folder: Path, resume: bool) -> bool:
        with asked_to_stop() as should_stop:
            train_and_show(recipe, folder, should_stop, resume=resume)
            return should_stop()

    def tell(told: str) -> None:
        console.print(Text(f"\n{told}", "bold"), soft_wrap=True)

    def go_on() -> None:
        # The folder's own list: it holds what was overridden on the command line too.
        again = f"sparrow train {out / LIST} --out {out} --resume"
        console.print(f"\nstopped; go on with: {again}", soft_wrap=True, markup=False)

    try:
        with asked_to_stop():  # between two stages there is nothing to save
            finished = run_stages(stages, out, run, resume=options.resume, tell=tell)
    except KeyboardInterrupt:
        if (out / LIST).is_file():
            go_on()
        raise
    if finished:
        show_ending(stage_folders(stages, out)[-1], console)
    else:
        go_on()


def read_stages(
    path: Path, arguments: list[str], kind: type[Chosen], program: str
) -> tuple[list[NamedStage], Chosen]:
    """The stages of a recipe with what the command line says of them.

    `--train.length` is for all of them and `--sft.train.length` for the stage `sft`, whatever the
    order. Shape and vocabulary are set where they are made: `--model` and `--tokenizer` leave out
    stages that take theirs from the run they start from, and `--init.from` is for the first.

    Args:
        path: the recipe.
        arguments: what stands behind it.
        kind: the options of the command, made of a path and a recipe.
        program: the command.

    Returns:
        The stages, and the options beside them.

    Raises:
        ConfigError: faults in the file, or an option for a stage that is not there.
    """
    import tyro

    from sparrowlm.cli.train import named

    stages = load_stages(path)
    told = _options(arguments)
    _check_options(told, [stage.name for stage in stages])
    changed: list[NamedStage] = []
    options: Any = None
    for number, stage in enumerate(stages):
        words = [word for group in _of_stage(told, stage, number == 0) for word in group]
        default: Any = kind(path, stage.recipe)  # pyright: ignore[reportCallIssue]
        words = [str(path), *named(words)]
        options = tyro.cli(kind, args=words, default=default, prog=program)
        changed.append(NamedStage(stage.name, options.settings))
    check_references(changed, program)
    return changed, options


def _options(arguments: Sequence[str]) -> list[list[str]]:
    """The words of each option; what comes before the first one stands alone."""
    groups: list[list[str]] = []
    for word in arguments:
        if word.startswith("--") or word == "-h" or not groups:
            groups.append([])
        groups[-1].append(word)
    return groups


def _place(group: Sequence[str]) -> tuple[str, str]:
    """The first two parts of an option: ("sft", "train") of `--sft.train.length`."""
    parts = group[0].partition("=")[0].removeprefix("--").split(".")
    return parts[0], parts[1] if len(parts) > 2 else ""


def _check_options(groups: Sequence[Sequence[str]], names: Sequence[str]) -> None:
    """
    Raises:
        ConfigError: an option names a stage that is not there, or changes what a stage is.
    """
    for group in groups:
        first, second = _place(group)
        if second in TABLES and first not in names:
            what = f"there is no stage {first!r}{near_miss(first, names)}"
            raise ConfigError(what, where=group[0])
        if first == "stage":
            fix = "change kind in the [[stage]] of the recipe"
            raise ConfigError("a list of stages has several", where=group[0], fix=fix)


def _of_stage(groups: Sequence[list[str]], stage: NamedStage, is_first: bool) -> list[list[str]]:
    """The options that one stage hears, its own behind the common ones, which they overrule."""
    common: list[list[str]] = []
    own: list[list[str]] = []
    for group in groups:
        first, second = _place(group)
        if second in TABLES:
            if first == stage.name:
                own.append([f"--{group[0].removeprefix(f'--{first}.')}", *group[1:]])
            continue
        elsewhere = first in stage.inherits or (first == "init" and not is_first)
        if not elsewhere or not group[0].startswith("--"):
            common.append(group)
    return common + own
