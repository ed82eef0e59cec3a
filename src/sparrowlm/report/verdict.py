"""What a run amounts to, in two sentences, beside compressors that everyone has.

A language model and a compressor answer the same question: how many bits does a byte of unseen
text cost? `gzip -9` and `xz -9` see the held-out text alone; "xz primed" has read the training
text first, as the model has, and is the fair one.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparrowlm.config import learns_to_answer
from sparrowlm.config.units import show_count, show_duration
from sparrowlm.report.read import Run, number, points

YARDSTICKS = {
    "gzip_bits_per_byte": "gzip -9",
    "xz_bits_per_byte": "xz -9",
    "xz_primed_bits_per_byte": "xz primed",
}
_LONG = {"xz primed": "xz primed by the training text"}


@dataclass(frozen=True)
class Yardstick:
    """A compressor beside the model."""

    name: str
    value: float  # bits per byte of the held-out text
    beaten: bool  # the run's figure is below
    first_below: float | None  # seconds of the first evaluation below


def yardsticks(run: Run) -> list[Yardstick]:
    """The compressors that the summary knows, in a fixed order."""
    reached = run.figure("val_bits_per_byte")
    log = points(run.evals, "val_bits_per_byte", "seconds")
    found = []
    for key, name in YARDSTICKS.items():
        value = number(run.summary.get(key))
        if value is not None:
            first = next((at for at, bits in log if bits < value), None)
            found.append(Yardstick(name, value, reached is not None and reached < value, first))
    return found


def headline(run: Run) -> str:
    """What was reached, by when.

    >>> from pathlib import Path
    >>> headline(Run(Path("runs/x"), summary={"steps": 10, "val_loss": 2.5}))
    'After 10 steps the held-out loss is 2.500 nats per token.'
    """
    spent = run.figure("wall_seconds")
    steps = run.figure("steps")
    parts = [show_duration(spent)] if spent is not None else []
    parts += [f"{steps:,.0f} step{'s' * (steps != 1)}"] if steps is not None else []
    when = f"After {' and '.join(parts)}" if parts else "So far"
    if (reward := run.figure("val_reward")) is not None:
        return f"{when} answers to held-out prompts earn {reward:.3f}{_before(run, 'val_reward')}."
    bits, loss = run.figure("val_bits_per_byte"), run.figure("val_loss")
    early = bool(run.best) and run.best is not run.evals[-1]
    best = f", at step {run.best.get('step')}, its best" if early else ""
    if bits is not None:
        answers = run.recipe is not None and learns_to_answer(run.recipe)
        unseen = "held-out answers" if answers else "text it has not seen"
        return f"{when} the model needs {bits:.3f} bits per byte of {unseen}{best}."
    if loss is not None:
        unit = "" if _judges(run) else " nats per token"
        before = _before(run, "val_loss")
        return f"{when} the held-out loss is {loss:.3f}{unit}{before}{best}."
    loss = run.figure("train_loss")
    if loss is None:
        return f"{when}, nothing has been measured."
    return f"{when} the training loss is {loss:.3f} nats per token; no held-out text was measured."


def comparison(run: Run) -> str:
    """Whether that beats the yardsticks, plainly; empty where there are none."""
    if run.figure("val_bits_per_byte") is None:
        if run.figure("val_loss") is None or _judges(run):
            return ""
        return "Bits per byte are unknown, for the data brings no tokenizer."
    found = yardsticks(run)
    if not found:
        return "No compressor was measured beside it."
    won = [_said(entry) for entry in found if entry.beaten]
    lost = [_said(entry) for entry in found if not entry.beaten]
    if not lost:
        return f"It beats {_list(won, 'and')}."
    if not won:
        return f"It does not beat {_list(lost, 'or')}."
    return f"It beats {_list(won, 'and')}, but not {_list(lost, 'or')}."


def in_short(run: Run) -> str:
    """Both sentences, for a terminal."""
    return f"{headline(run)} {comparison(run)}".strip()


def pace(run: Run) -> str:
    """Size and speed in a line: `4.2M parameters, 21.4k tokens/s, 63 % of the ceiling`."""
    parts = []
    if (size := run.figure("parameters")) is not None:
        parts.append(f"{show_count(size)} parameters")
    if (speed := run.figure("tokens_per_second")) is not None:
        parts.append(f"{show_count(speed)} tokens/s")
    if (share := run.figure("mfu")) is not None:
        parts.append(f"{share:.0%} of the ceiling")
    return ", ".join(parts)


def _judges(run: Run) -> bool:
    """Whether the loss is of answers that are compared or judged, not of tokens."""
    return any("val_accuracy" in row or "val_reward" in row for row in run.evals)


def _before(run: Run, name: str) -> str:
    """What the log says of the weights that a run started from; empty where it does not."""
    first = run.evals[0] if run.evals else {}
    value = number(first.get(name)) if first.get("step") == 0 else None
    return "" if value is None else f" ({value:.3f} before the first step)"


def _said(entry: Yardstick) -> str:
    """As a sentence names it: `xz -9 (1.481, passed after 2 min 10 s)`."""
    passed = "" if entry.first_below is None else f"passed after {show_duration(entry.first_below)}"
    facts = ", ".join(filter(None, [f"{entry.value:.3f}", passed]))
    return f"{_LONG.get(entry.name, entry.name)} ({facts})"


def _list(items: list[str], word: str) -> str:
    """`a, b and c`."""
    return f" {word} ".join(filter(None, [", ".join(items[:-1]), items[-1]]))
