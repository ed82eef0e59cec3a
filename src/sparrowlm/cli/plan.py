"""`sparrow plan RECIPE`: what a run will need, before anything starts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparrowlm.cli.train import named, recipe_and_overrides, recipe_with_stages
from sparrowlm.config import InitConfig, Recipe, TokenizerConfig
from sparrowlm.config.units import parse_bytes, show_bytes, show_count, show_duration
from sparrowlm.errors import ConfigError

LEAST_MEMORY = 10**6  # bytes: less is a unit that was forgotten


@dataclass(frozen=True)
class Options:
    """State what a recipe needs and whether it fits. Any of its keys can be set."""

    recipe: tyro.conf.Positional[Path]  # A TOML file, or the name of one that Sparrow brings
    settings: Annotated[Recipe, tyro.conf.arg(name="")]
    memory: str = (
        ""  # CUDA cards to plan for, by their memory: 24GB, or 8GB,24GB; default: this machine
    )


def parse_plan(arguments: list[str]) -> None:
    """Read the recipe, work it out, print it; of a list of stages, each."""
    if (path := recipe_with_stages(arguments)) is not None:
        plan_stages(path, arguments[1:])
        return
    path, settings = recipe_and_overrides(arguments)
    default = Options(path, settings)
    options = tyro.cli(Options, args=named(arguments), default=default, prog="sparrow plan")
    show(options.settings, options.memory)


def plan_stages(path: Path, arguments: list[str]) -> None:
    """Print the plan of each stage; what one takes from another's run is as planned there."""
    from sparrowlm.cli.stages import read_stages

    stages, options = read_stages(path, arguments, Options, "sparrow plan")
    console = Console(highlight=False)
    planned: dict[str, Recipe] = {}
    for number, stage in enumerate(stages, 1):
        recipe = stage.recipe
        start, words = recipe.init.from_, recipe.tokenizer.path
        if start.startswith("@"):
            tables = {name: getattr(planned[start[1:]], name) for name in stage.inherits}
            recipe = replace(recipe, init=InitConfig(), **tables)
        teacher = recipe.distill.teacher
        if stage.recipe.stage == "distill" and teacher.startswith("@"):
            recipe = replace(recipe, distill=replace(recipe.distill, teacher=""))
            if recipe.tokenizer == TokenizerConfig():
                words = teacher
        if words.startswith("@"):
            recipe = replace(recipe, tokenizer=planned[words[1:]].tokenizer)
        title = f"stage {number} of {len(stages)}, {stage.name}"
        console.print(Text(f"\n{title}" if planned else title, "bold"))
        planned[stage.name] = show(recipe, options.memory)


def show(recipe: Recipe, memory: str) -> Recipe:
    """Print which of the cards asked for hold a run, or a plan for this machine.

    Returns:
        The recipe with its derived settings filled in.
    """
    sizes = [_size(word) for word in memory.split(",")] if memory else []
    return show_cards(recipe, sizes) if sizes else show_plan(recipe)


def _size(word: str) -> int:
    size = parse_bytes(word, key="--memory")
    if size < LEAST_MEMORY:
        raise ConfigError(f'"{word}" is below a megabyte', where="--memory", fix='write "4GB"')
    return size


def show_cards(recipe: Recipe, cards: list[int]) -> Recipe:
    """Print which cards hold a run, and at which settings; returns the recipe, resolved."""
    from sparrowlm.pipeline import plan_recipe
    from sparrowlm.train.plan import USABLE, settings_that_fit

    plan, runtime, _ = plan_recipe(recipe)
    table = Table(
        "card", "rows at a time", "checkpointing", "needs", box=None, padding=(0, 2, 0, 0)
    )
    for card in cards:
        fit = settings_that_fit(plan.recipe, card)
        if fit is None:
            table.add_row(show_bytes(card), "does not hold it", "", "")
            continue
        needs = f"{show_bytes(fit.memory.total)} in {fit.precision}"
        spared = "on" if fit.checkpointing else "off"
        table.add_row(show_bytes(card), str(fit.rows), spared, needs)
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"{plan.parameters.total:,} parameters with {plan.recipe.optim.name};"
        f" {USABLE:.0%} of a card is counted on."
    )
    if plan.tokens:
        console.print(
            f"{plan.total_steps:,} steps, {show_count(plan.tokens)} tokens: this machine"
            f" ({runtime.device}) would take about {show_duration(plan.seconds)}.",
            soft_wrap=True,
        )
    return plan.recipe


def show_plan(recipe: Recipe) -> Recipe:
    """Print a table of the run's needs, and whether it fits; returns the recipe, resolved."""
    from sparrowlm.pipeline import plan_recipe
    from sparrowlm.train.plan import advice

    plan, runtime, rows_known = plan_recipe(recipe)
    console = Console(highlight=False)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_column(style="dim")
    train = plan.recipe.train
    parts = plan.parameters
    table.add_row("parameters", f"{parts.total:,}", _parts(parts._asdict()))
    optimizer = plan.recipe.optim.name
    if plan.recipe.lora.rank:
        optimizer = "adamw"
        note = f"low-rank changes of rank {plan.recipe.lora.rank}; the parameters stay as they are"
        table.add_row("trained", f"{plan.trained:,}", note)
    for name, note in (
        ("weights", ""),
        ("gradients", ""),
        ("optimizer", optimizer),
        ("activations", f"{train.micro_batch_size} rows of {train.seq_len} tokens"),
        ("head", "logits of one chunk, and their gradient"),
        ("frozen", "a teacher, a reference or a reward model"),
    ):
        if name == "frozen" and not plan.memory.frozen:
            continue
        table.add_row(name, show_bytes(getattr(plan.memory, name)), note)
    usable = f"of {show_bytes(plan.available)} that may be used" if plan.available else ""
    table.add_row("in all", show_bytes(plan.memory.total), usable, style="bold")
    table.add_row("checkpoint", show_bytes(plan.checkpoint_bytes), "on the disk, each")
    table.add_row("per token", f"{show_count(plan.flops_per_token)}FLOP", "forward and backward")
    if plan.tokens:
        table.add_row("length", f"{plan.total_steps:,} steps", f"{show_count(plan.tokens)} tokens")
        work = f"{plan.tokens * plan.flops_per_token:.2e}"
        table.add_row("work", work, "floating-point operations")
        rate = f"at half of the measured {plan.rate / 1e9:,.0f} GFLOP/s"
        table.add_row("time", show_duration(plan.seconds), rate)
    else:
        note = "" if rows_known else "in steps once the data is there"
        table.add_row("length", train.length, note)
    console.print(table)
    device = f"{runtime.device} in {runtime.precision}"
    if plan.fits:
        console.print(f"It fits ({device}).")
    else:
        console.print(f"It does not fit ({device}): {advice(plan, runtime)}.")
    return plan.recipe


def _parts(parts: dict[str, int]) -> str:
    return ", ".join(f"{name} {show_count(count)}" for name, count in parts.items() if count)
