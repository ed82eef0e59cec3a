"""`sparrow quickstart`: a language model from the text that every Python carries, in minutes, and
then one that answers questions about it."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from sparrowlm.config import (
    InitConfig,
    ModelConfig,
    Recipe,
    TokenizerConfig,
    find_recipe,
    load_recipe,
)

# Where the last completion starts: a header that the training text does not hold.
HEADERS = ("def binary_search(items, target):\n", 'def read_json(path, encoding="utf-8"):\n')

QUESTIONS = ("What does `os.path.join` do?", "What is `argparse.ArgumentParser` for?")
CHAT_SHARE = 0.5  # of the minutes of pretraining that fine-tuning takes on top


def quickstart(
    *,
    minutes: float = 3.0,
    corpus: tuple[str, ...] = (),
    out: Path | None = None,
    chat: bool = True,
) -> None:
    """Train a small model on this machine's own Python source, and then to answer questions about
    it; in a terminal it ends in a chat. Nothing is downloaded.

    Args:
        minutes: How long to train; answering takes half as long on top.
        corpus: Files, folders or globs of your own text instead, without questions.
        out: The run folder; runs/quickstart, or the next free name.
        chat: Fine-tune on questions and answers made from docstrings, into OUT-chat.
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
    if summary is None:
        return
    _close(console, out, HEADERS if not corpus else ())
    if chat and not corpus:
        _learn_to_answer(console, out, minutes * CHAT_SHARE)


def _learn_to_answer(console: Console, base: Path, minutes: float) -> None:
    """Fine-tune a run on the docstrings of its own corpus, and ask it something."""
    from sparrowlm.cli.show import PrepareProgress
    from sparrowlm.cli.train import run_training
    from sparrowlm.data.chats import prepare_sequences
    from sparrowlm.data.corpus import python_sources
    from sparrowlm.data.docstrings import write_chats
    from sparrowlm.runtime import cache_folder

    made = write_chats(python_sources().sources, base / "chats")
    lines = sum(source.path.read_bytes().count(b"\n") for source in made)
    console.print(
        f"\nChats: {lines:,} questions and answers from the docstrings of {len(made)} modules,"
        f" in {base / 'chats'}\n",
        soft_wrap=True,
    )
    recipe = chat_recipe(base, minutes)
    with PrepareProgress() as progress:
        folder = prepare_sequences(
            recipe.data,
            TokenizerConfig(kind="folder", path=str(base / "tokenizer")),
            cache_folder() / "prepared",
            "chats",
            recipe.train.seq_len,
            progress,
            made,
        )
    # The recipe that the run keeps names what can be opened again.
    recipe = replace(recipe, data=replace(recipe.data, path=(str(folder),)))
    out = _free_name(base.with_name(f"{base.name}-chat"))
    if run_training(recipe, out, resume=False) is not None:
        _ask(console, out)


def chat_recipe(base: Path, minutes: float) -> Recipe:
    """How a quickstart's run is fine-tuned on the chats in its folder."""
    from sparrowlm.checkpoint import RunFolder

    recipe = RunFolder(base).recipe()
    return replace(
        recipe,
        stage="sft",
        model=ModelConfig(),  # those of the run it starts from
        tokenizer=TokenizerConfig(),
        init=InitConfig(from_=str(base)),
        data=replace(load_recipe(find_recipe("quickstart")).data, path=(str(base / "chats"),)),
        train=replace(recipe.train, length=f"{minutes:g} minutes"),
        optim=replace(recipe.optim, lr=recipe.optim.lr / 3, muon_lr=recipe.optim.muon_lr / 2),
        samples=replace(recipe.samples, prompts=QUESTIONS[:1], max_tokens=80, temperature=0.3),
    )


def _ask(console: Console, out: Path) -> None:
    """Put questions to a fine-tuned run, and let whoever is there go on asking."""
    from sparrowlm.cli.chat import greet, open_talk
    from sparrowlm.cli.talk import converse
    from sparrowlm.infer.sampling import Sampling

    sampling = Sampling(temperature=0.0, max_tokens=80)
    talk = open_talk(out, sampling, mode="chat")
    for question in QUESTIONS:
        console.print(Text(f"\nyou: {question}", "bold"), soft_wrap=True)
        talk.partner.reset()
        talk.answer(question)
    if talk.page.has_person:
        talk.partner.reset()
        console.print("\nYour turn:", soft_wrap=True)
        greet(talk, out)
        converse(talk)
    console.print("\ntalk on with", soft_wrap=True)
    console.print(Text(f"  sparrow chat {out} --temperature 0.3", "bold"), soft_wrap=True)


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
