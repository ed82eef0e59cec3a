"""`sparrow chat RUN`: talk with a trained run, or write a text together with one that was never
taught to answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, UseAppendAction, arg

from sparrowlm.cli.drawing import ANSWERING, Answering
from sparrowlm.cli.page import Page, Thinking
from sparrowlm.cli.talk import CONTEXT, NO_ADAPTER, Mode, Talk, converse
from sparrowlm.errors import ConfigError

if TYPE_CHECKING:
    from sparrowlm.infer.sampling import Sampling


def chat(
    run: Annotated[Positional[Path], arg(metavar="RUN")],
    *,
    system: str = "",
    think: Thinking = "off",
    drawing: Annotated[Answering, arg(name="")] = ANSWERING,
    adapter: Annotated[tuple[str, ...], UseAppendAction] = (),
    mode: Mode = "auto",
    context: int = CONTEXT,
    device: str = "auto",
    precision: str = "auto",
) -> None:
    """Talk with a trained run. Questions from a pipe are answered line by line.

    Args:
        run: A run folder, which is taken at its best step, or one of its checkpoints.
        system: What the model is told before the first question.
        think: Answer at once (off), or think first, shown in one line (fold) or whole (show).
        drawing: How answers are drawn.
        adapter: NAME=PATH of changes to talk with: a LoRA run on this base, or an adapter's folder
            of PEFT's; may be given several times, and /adapter NAME changes between them.
        mode: Answer by turns (chat) or go on with a text (text); auto: as the run was taught.
        context: Tokens that the model sees at most; its own context where that is less.
        device: auto, cpu, cuda or mps.
        precision: auto, float32, bfloat16, float16 or float64.
    """
    talk = open_talk(
        run, drawing.sampling(), named_adapters(adapter), mode=mode, think=think, system=system,
        context=context, device=device, precision=precision,
    )  # fmt: skip
    if talk.page.has_person:
        greet(talk, run)
    converse(talk)


def open_talk(
    run: Path,
    sampling: Sampling,
    adapters: dict[str, Path] | None = None,
    *,
    mode: Mode = "auto",
    think: Thinking = "off",
    system: str = "",
    context: int = CONTEXT,
    device: str = "auto",
    precision: str = "auto",
) -> Talk:
    """Load a run to talk with, with the first of its adapters.

    Raises:
        ConfigError: no context.
        RunError: no run there, or an adapter that is none of it.
    """
    from sparrowlm.pipeline import Loaded, load_run
    from sparrowlm.share.adapters import read_adapter

    if context < 2:
        raise ConfigError(f"context is {context}, and must be at least 2", where="--context")
    known = adapters or {}
    for path in list(known.values())[1:]:
        read_adapter(path)  # a wrong path is told now, not in the middle of a talk

    def load(name: str) -> Loaded:
        return load_run(run, device, precision, known.get(name))

    return Talk(
        load, sampling, Page(), tuple(known), mode=mode, think=think, system=system,
        context=context,
    )  # fmt: skip


def greet(talk: Talk, run: Path) -> None:
    """Say what this is and how to find out more."""
    from sparrowlm.config.units import show_count

    size = show_count(sum(weight.numel() for weight in talk.loaded.model.parameters()))
    talk.page.write(str(run), "bold")
    talk.page.write(
        f"  step {talk.loaded.step:,}  {size} parameters  context {talk.context}\n", "dim"
    )
    if talk.mode == "text":
        told = "It was never taught to answer: it goes on with your text, and Enter lets it go on."
        talk.page.write(f"{told}\n", "dim")
    talk.page.write("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.\n", "dim")


def named_adapters(given: tuple[str, ...]) -> dict[str, Path]:
    """{name: path} of `NAME=PATH`, or of a path alone, whose last part is its name then; of the
    `adapter` in a run the run's.

    Raises:
        ConfigError: a name that is given twice, or is taken.

    >>> list(named_adapters(("poet=runs/a", "runs/b")))
    ['poet', 'b']
    """
    found: dict[str, Path] = {}
    for text in given:
        name, _, path = text.partition("=")
        if not path or {"/", "\\"} & set(name):
            path = text
            whole = Path(text).resolve()
            name = whole.parent.name if whole.name == "adapter" else whole.name
        if name in found or name in ("", NO_ADAPTER) or " " in name:
            raise ConfigError(
                f"the name {name!r} is taken or none",
                where=f"--adapter {text}",
                fix="name each otherwise: --adapter poet=runs/poet",
            )
        found[name] = Path(path)
    return found
