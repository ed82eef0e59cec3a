"""How much a model repeats itself when it writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sparrowlm.data.shards import Tokens
from sparrowlm.errors import ConfigError
from sparrowlm.evaluate.answering import Subject
from sparrowlm.evaluate.figures import Figure, Measured, mean_of
from sparrowlm.evaluate.repetition import distinct, repetition_rate
from sparrowlm.infer.engine import Engine, Request
from sparrowlm.infer.sampling import Sampling
from sparrowlm.text.chat import ChatFormat

GRAMS = (1, 2, 3)


def measure_writing(
    subject: Subject,
    prompts: Sequence[str],
    count: int,
    sampling: Sampling,
    *,
    chat: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Measured:
    """distinct-n and repetition of what a model writes, in its own tokens: the mean over texts.

    distinct-n falls with the length of a text, so compare runs at one `max_tokens`; `length` says
    how long the texts became, since a model may end one before that.

    Args:
        subject: what writes.
        prompts: what the texts begin with, in turn; those of a chat are a user's turns.
        count: texts.
        sampling: how they are drawn and how long they may be.
        chat: prompts are a user's turns.
        progress: told how many texts of how many are done.

    Raises:
        ConfigError: no prompts or no texts.
    """
    if not prompts or count < 1:
        raise ConfigError("nothing is to be written", where="--samples", fix="--samples 16")
    engine = Engine(subject.model, subject.tokenizer, subject.runtime)
    form = ChatFormat(subject.tokenizer) if chat else None
    requests = []
    for number in range(count):
        prompt = prompts[number % len(prompts)]
        if form is None:
            requests.append(Request(engine.prompt(prompt), sampling, number))
        else:
            ids = form.prompt_ids([{"role": "user", "content": prompt}])
            requests.append(Request(ids, sampling, number, form.end_ids))
    written: list[list[int]] = [[] for _ in requests]
    done = 0
    for piece in engine.stream(requests):
        if piece.end != "end_of_text":
            written[piece.row].append(piece.token)
        done += bool(piece.end)
        if progress is not None and piece.end:
            progress(done, count)
    how = (
        f"{count} texts, {len(prompts)} prompts, up to {sampling.max_tokens} tokens,"
        f" temperature {sampling.temperature:g}, top_k {sampling.top_k}, seed {sampling.seed}"
    )
    return Measured("what it writes", how, repetition_of(written))


def measure_text(tokens: Tokens, count: int, length: int) -> Measured:
    """The same of a text that people wrote: what a model that has learned it comes near to.

    Args:
        tokens: of the text.
        count: pieces of it, evenly over the whole; fewer where it has fewer.
        length: tokens of a piece, as many as the texts it is compared with.
    """
    length = min(length, len(tokens))
    count = min(count, max(1, len(tokens) // max(1, length)))
    starts = [(len(tokens) - length) * number // max(1, count - 1) for number in range(count)]
    pieces = [tokens.read(start, length).tolist() for start in starts]
    how = f"{count} pieces of {length} tokens, evenly over it"
    return Measured("the held-out text itself", how, repetition_of(pieces))


def repetition_of(texts: Sequence[Sequence[int]]) -> dict[str, Figure]:
    """distinct-1 to 3, repetition and length in tokens: means over texts."""
    figures = {f"distinct-{n}": mean_of([distinct(ids, n) for ids in texts]) for n in GRAMS}
    figures["repetition"] = mean_of([repetition_rate(ids) for ids in texts])
    figures["length"] = mean_of([float(len(ids)) for ids in texts])
    return figures
