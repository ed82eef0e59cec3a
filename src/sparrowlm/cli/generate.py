"""`sparrow generate RUN`: let a trained run write, all at once or piece by piece."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from sparrowlm.cli.drawing import DRAWING, Drawing
from sparrowlm.cli.page import Page

if TYPE_CHECKING:
    from sparrowlm.infer.engine import Engine, Piece
    from sparrowlm.infer.sampling import Sampling


def generate(
    run: Annotated[Positional[Path], arg(metavar="RUN")],
    *,
    prompt: str = "",
    chat: str | None = None,
    drawing: Annotated[Drawing, arg(name="")] = DRAWING,
    num: int = 1,
    interactive: bool = False,
    adapter: Path | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> None:
    """Let a trained run write.

    Args:
        run: A run folder, which is taken at its best step, or one of its checkpoints.
        prompt: What the text begins with; "-" reads it from standard input.
        chat: A question to a fine-tuned run; "" with --interactive asks you for the first one.
        drawing: How the text is drawn.
        num: How many texts to write.
        interactive: Write a story together, piece by piece; with --chat, talk (sparrow chat).
        adapter: Changes to write with: a LoRA run on this base, or an adapter's folder of PEFT's.
        device: auto, cpu, cuda or mps.
        precision: auto, float32, bfloat16, float16 or float64.
    """
    sampling = drawing.sampling()
    if chat is not None:
        check_alone(prompt, num)
        chat_with(run, chat, sampling, interactive, device, precision, adapter)
    else:
        write_from(run, prompt, sampling, num, interactive, device, precision, adapter)


def check_alone(prompt: str, num: int) -> None:
    """Whether a question is asked once and for itself.

    Raises:
        ConfigError: several answers are asked for, or a text to begin with.
    """
    from sparrowlm.errors import ConfigError

    if num != 1 or prompt:
        raise ConfigError(
            "a question gets one answer, and begins no text",
            where="--chat",
            fix="leave out --num and --prompt; another --seed gives another answer",
        )


def chat_with(
    run: Path,
    question: str,
    sampling: Sampling,
    interactive: bool,
    device: str,
    precision: str,
    adapter: Path | None = None,
) -> None:
    """Load the run, and answer a question or talk with the person."""
    from sparrowlm.cli.chat import open_talk
    from sparrowlm.cli.talk import converse
    from sparrowlm.errors import ConfigError

    if not question and not interactive:
        fix = '--chat "What is a sparrow?", or sparrow chat to talk'
        raise ConfigError("there is no question", where="--chat", fix=fix)
    adapters = {} if adapter is None else {adapter.name: adapter}
    talk = open_talk(run, sampling, adapters, mode="chat", device=device, precision=precision)
    if interactive:
        converse(talk, question or None)
    else:
        talk.answer(question)


def write_from(
    run: Path,
    prompt: str,
    sampling: Sampling,
    num: int,
    interactive: bool,
    device: str,
    precision: str,
    adapter: Path | None = None,
) -> None:
    """Load the run, and write from the prompt or with the person."""
    from sparrowlm.errors import ConfigError
    from sparrowlm.infer.engine import Engine
    from sparrowlm.pipeline import load_run

    if num < 1:
        raise ConfigError(f"num is {num}, and must be at least 1")
    if interactive and (num > 1 or prompt == "-"):
        raise ConfigError(
            "an interactive story is one text, and standard input is for your answers",
            where="--interactive",
            fix='leave out --num and --prompt "-"',
        )
    if interactive:
        tell_story(run, prompt, sampling, device, precision, adapter)
        return
    begin = _standard_input() if prompt == "-" else prompt
    loaded = load_run(run, device, precision, adapter)
    engine = Engine(loaded.model, loaded.tokenizer, loaded.runtime)
    write_texts(engine, begin, sampling, num, Page())


def write_texts(engine: Engine, prompt: str, sampling: Sampling, num: int, page: Page) -> None:
    """Write `num` texts together, and show them one after the other: the first of those that are
    not complete yet as it comes."""
    from sparrowlm.infer.engine import Request

    ids = engine.prompt(prompt)
    shown = -1
    requests = [Request(ids, sampling, sample) for sample in range(num)]
    for piece in in_order(engine.stream(requests)):
        if piece.row > shown:
            page.end_line()
            if num > 1:
                page.write(f"--- {piece.row + 1} of {num} ---\n", "dim")
            page.write(prompt, "bold")
            shown = piece.row
        page.write(piece.text)
    page.end_line()


def tell_story(
    run: Path,
    prompt: str,
    sampling: Sampling,
    device: str,
    precision: str,
    adapter: Path | None = None,
) -> None:
    """Write a piece, ask, and go on, as `sparrow chat` does with a model that answers nothing."""
    from sparrowlm.cli.chat import open_talk
    from sparrowlm.cli.talk import converse

    adapters = {} if adapter is None else {adapter.name: adapter}
    talk = open_talk(run, sampling, adapters, mode="text", device=device, precision=precision)
    talk.page.write(prompt, "bold")
    converse(talk, prompt)


def in_order(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The pieces of row 0, then those of row 1, and so on, each as soon as that allows."""
    later: dict[int, list[Piece]] = defaultdict(list)
    row = 0
    for piece in pieces:
        later[piece.row].append(piece)
        while later[row]:
            ready = later.pop(row)
            yield from ready
            if not ready[-1].end:
                break
            row += 1


def _standard_input() -> str:
    """All of standard input, as UTF-8; one line end at its end is the shell's, not the text's."""
    from sparrowlm.errors import DataError

    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise DataError(
            f"is not UTF-8: {fault.reason} at byte {fault.start}", where="standard input"
        ) from fault
    return text.replace("\r\n", "\n").removesuffix("\n")
