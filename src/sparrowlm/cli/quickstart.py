"""`sparrow quickstart`: a language model from the text that every Python carries, in minutes."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from sparrowlm.config import find_recipe, load_recipe

# Where the last completion starts: a header that the training text does not hold.
HEADERS = ("def binary_search(items, target):\n", 'def read_json(path, encoding="utf-8"):\n')


def quickstart(
    *,
    minutes: float = 3.0,
    corpus: tuple[str, ...] = (),
    out: Path | None = None,
) -> None:
    """Train a small model on this machine's own Python source; nothing is downloaded.

    Args:
        minutes: How long to train.
        corpus: Files, folders or globs of your own text instead.
        out: The run folder; runs/quickstart, or the next free name.
    """
    from sparrowlm.cli.show import PrepareProgress
    from sparrowlm.cli.train import run_training
    from sparrowlm.pipeline import quickstart_size
    from sparrowlm.train.opening import prepare_text

    console = Console(highlight=False)
    recipe = load_recipe(find_recipe("quickstart"))
    recipe = replace(recipe, train=replace(recipe.train, length=f"{minutes:g} minutes"))
    recipe = quickstart_size(recipe, seconds=60 * minutes)
    sources, told = _corpus(corpus)
    console.print(told, soft_wrap=True)
    if corpus:
        recipe = replace(
            recipe,
            data=replace(recipe.data, path=corpus),
            samples=replace(recipe.samples, prompts=("",)),
        )
    with PrepareProgress() as progress:
        folder = prepare_text(recipe, progress, sources)
    # The recipe that the run keeps names what can be opened again.
    recipe = replace(recipe, data=replace(recipe.data, path=(str(folder),)))
    out = out or _free_name(Path("runs/quickstart"))
    summary = run_training(recipe, out, resume=False)
    if summary is not None:
        _close(console, out, HEADERS if not corpus else ())


def _corpus(paths: tuple[str, ...]):
    """The sources, grouped so that what is held out is no copy of the rest, and a sentence."""
    from sparrowlm.data.corpus import python_sources

    if paths:
        return None, f"Corpus: {', '.join(paths)}"
    found = python_sources()
    size = sum(source.path.stat().st_size for source in found.sources)
    return found.sources, (
        f"Corpus: {found.description} of Python {platform.python_version()},"
        f" {len(found.sources)} files, {size / 1e6:.1f} MB, held out by module"
    )


def _free_name(wanted: Path) -> Path:
    """`runs/quickstart`, or `runs/quickstart-2` where that is taken."""
    number, path = 1, wanted
    while path.exists():
        number += 1
        path = wanted.with_name(f"{wanted.name}-{number}")
    return path


def _close(console: Console, out: Path, headers: tuple[str, ...]) -> None:
    """Let the best checkpoint write, and say what to do next."""
    from sparrowlm.cli.show import show_ending
    from sparrowlm.infer.sampling import Sampling
    from sparrowlm.pipeline import load_run

    loaded = load_run(out)
    for header in headers[:1]:
        console.print("\nWhat it writes after a function header it has never seen:\n")
        text = loaded.write(header, Sampling(temperature=0.4, top_k=40, max_tokens=96, seed=1))
        shown = Text("  " + header.replace("\n", "\n  "), "bold")
        console.print(shown.append(text.replace("\n", "\n  "), "not bold"), soft_wrap=True)
    show_ending(out, console)
