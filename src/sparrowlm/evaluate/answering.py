"""Tasks put to a model: choices by log-likelihood, completions by a scorer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from sparrowlm.evaluate.figures import Figure, Measured, mean_of, pass_at
from sparrowlm.evaluate.tasks import Task, choices_of, context_of, messages_of
from sparrowlm.infer.answers import Dialect
from sparrowlm.infer.engine import Engine, Request
from sparrowlm.infer.judging import Case, Judge
from sparrowlm.infer.sampling import Sampling
from sparrowlm.infer.scoring import logprobs
from sparrowlm.model.transformer import Transformer
from sparrowlm.runtime import Runtime
from sparrowlm.text.chat import ChatFormat
from sparrowlm.text.tokenizer import Tokenizer

Progress = Callable[[str, int, int], None]
"""Told what is going on, and how much of how much is done."""

RIGHT = 1.0
"""What a scorer must say at least for a completion to count as right."""


class Subject(NamedTuple):
    """What is measured."""

    model: Transformer
    """On its device, in evaluation mode."""
    tokenizer: Tokenizer
    runtime: Runtime


def answer(task: Task, subject: Subject, progress: Progress | None = None) -> Measured:
    """Put a task to a model.

    Raises:
        DataError: a row that lacks what the task asks for.
        TokenizerError: a task of chats, and a vocabulary without turns.
    """
    told = None if progress is None else partial(progress, task.name)
    if task.config.kind == "choice":
        return choose(task, subject, told)
    return complete(task, subject, told)


def choose(
    task: Task, subject: Subject, progress: Callable[[int, int], None] | None = None
) -> Measured:
    """The share of rows where the right continuation is the likeliest one: `accuracy` by the
    whole's log-probability, `accuracy_norm` by that of a byte (UTF-8), which does not prefer
    short ones. `chance` is what guessing would reach."""
    limit = subject.model.config.max_seq_len + 1
    sequences: list[list[int]] = []
    first: list[int] = []
    asked = [choices_of(task.config, row) for row in task.rows]
    cut = 0
    form = ChatFormat(subject.tokenizer) if task.config.chat else None
    for number, (texts, _) in enumerate(asked):
        for text in texts:
            context, continuation = _pair(task, number, text, subject.tokenizer, form)
            ids = [*context, *continuation][-limit:]
            cut += len(ids) < len(context) + len(continuation)
            sequences.append(ids)
            first.append(max(1, len(ids) - len(continuation)))
    said = logprobs(subject.model, subject.runtime, sequences, first, progress)
    sums = iter(one.logprobs.double().sum().item() for one in said)
    hits, normed, chances = [], [], []
    for texts, gold in asked:
        own = [next(sums) for _ in texts]
        by_byte = [nats / len(text.encode()) for nats, text in zip(own, texts, strict=True)]
        hits.append(float(own.index(max(own)) == gold))
        normed.append(float(by_byte.index(max(by_byte)) == gold))
        chances.append(1 / len(texts))
    figures = {"accuracy": mean_of(hits), "accuracy_norm": mean_of(normed)}
    figures["chance"] = Figure(sum(chances), len(chances))
    notes = [f"{cut:,} of {len(sequences):,} continuations lost the beginning of their context"]
    how = f"{len(task.rows):,} rows, {_shots(task)}, the likeliest continuation"
    return Measured(task.name, how, figures, tuple(notes if cut else ()))


def complete(
    task: Task, subject: Subject, progress: Callable[[int, int], None] | None = None
) -> Measured:
    """pass@k: the chance that of k completions at least one is right, estimated from n of each
    prompt. A prompt that leaves no room for an answer counts as failed, and is told of."""
    config = task.config
    dialect = Dialect(subject.tokenizer, config.chat)
    engine = Engine(subject.model, subject.tokenizer, subject.runtime, slide=False)
    prompts = [_prompt(task, number, engine, dialect.format) for number in range(len(task.rows))]
    fitting = [number for number, ids in enumerate(prompts) if len(ids) <= engine.context]
    requests = [
        Request(prompts[number], _sampling(task), sample, dialect.ends)
        for number in fitting
        for sample in range(config.n)
    ]
    written, ends = _write(engine, requests, progress)
    cases = []
    for place, ids in enumerate(written):
        row = task.rows[fitting[place // config.n]]
        text = _until(dialect.text(ids), config.stop)
        cases.append(Case(text, {**row.values, "gold": row.values.get(config.gold)}, row.place))
    with Judge((config.scorer,)) as judge:
        verdicts = judge(cases)
    right = Counter(
        fitting[place // config.n]
        for place, verdict in enumerate(verdicts)
        if verdict.values[0] >= RIGHT
    )
    figures = {
        f"pass@{k}": mean_of([pass_at(k, config.n, right[n]) for n in range(len(prompts))])
        for k in config.k
    }
    how = (
        f"{len(prompts):,} rows, {_shots(task)}, {config.n} completions of each at temperature"
        f" {config.temperature:g}, up to {config.max_tokens} tokens, {config.scorer}"
    )
    faults = [fault for verdict in verdicts for fault in verdict.faults]
    unfinished = ends["max_tokens"] + ends["context"]
    notes = {
        f"{len(prompts) - len(fitting):,} of {len(prompts):,} prompts are longer than the context:"
        " counted as failed": len(fitting) < len(prompts),
        f"{unfinished:,} of {len(written):,} completions were cut off": bool(unfinished),
        f"the scorer failed {len(faults):,} times: {faults[0] if faults else ''}": bool(faults),
    }
    return Measured(task.name, how, figures, tuple(note for note, is_so in notes.items() if is_so))


def encode_pair(
    tokenizer: Tokenizer, context: str, continuation: str
) -> tuple[list[int], list[int]]:
    """The ids of a context and of what continues it, as lm-eval cuts them: white space between the
    two belongs to the continuation, whose ids are those that the whole has more. Where it has no
    more, since the two merge into one, they are those of the continuation alone: none at all would
    be the likeliest of any choice. Of an empty context the id that stands before every document.

    >>> encode_pair(byte_tokenizer(), "a ", "b")
    ([97], [32, 98])
    """
    stripped = context.rstrip()
    continuation, context = context[len(stripped) :] + continuation, stripped
    if not context:
        before = [] if tokenizer.eot_id is None else [tokenizer.eot_id]
        return before, tokenizer.encode(continuation)
    whole, ids = tokenizer.encode(context + continuation), tokenizer.encode(context)
    return ids, whole[len(ids) :] or tokenizer.encode(continuation)


def _pair(
    task: Task, number: int, text: str, tokenizer: Tokenizer, form: ChatFormat | None
) -> tuple[list[int], list[int]]:
    """The ids before one continuation of a row, and its own."""
    if form is not None:
        return form.prompt_ids(messages_of(task, number)), tokenizer.encode(text)
    return encode_pair(tokenizer, context_of(task, number), task.config.before + text)


def _prompt(task: Task, number: int, engine: Engine, form: ChatFormat | None) -> list[int]:
    """The ids that a row's answer is written behind. White space before an answer is the answer's
    to write: most vocabularies have it in one piece with the word."""
    if form is not None:
        return form.prompt_ids(messages_of(task, number))
    return engine.prompt(context_of(task, number) + task.config.before.rstrip())


def _sampling(task: Task) -> Sampling:
    config = task.config
    return Sampling(
        temperature=config.temperature,
        top_k=config.top_k,
        max_tokens=config.max_tokens,
        seed=config.seed,
        stop=config.stop,
    )


def _write(
    engine: Engine, requests: Sequence[Request], progress: Callable[[int, int], None] | None
) -> tuple[list[list[int]], Counter[str]]:
    """The ids of every completion, and how often each thing ended one."""
    written: list[list[int]] = [[] for _ in requests]
    ends: Counter[str] = Counter()
    for piece in engine.stream(requests):
        written[piece.row].append(piece.token)
        if piece.end:
            ends[piece.end] += 1
            if progress is not None:
                progress(ends.total(), len(requests))
    return written, ends


def _until(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string."""
    places = [text.find(stop) for stop in stops if stop in text]
    return text[: min(places)] if places else text


def _shots(task: Task) -> str:
    return f"{task.config.shots} shots{', as a chat' if task.config.chat else ''}"
