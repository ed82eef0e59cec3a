"""The model card, made from the run: what is known, and plainly what is not.

Local paths stay at home: of a file its name is told, of a hub's data set its address.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from sparrowlm.checkpoint import find_run
from sparrowlm.config import Recipe
from sparrowlm.config.units import show_bytes, show_count, show_duration
from sparrowlm.data.hub import is_address
from sparrowlm.errors import RunError
from sparrowlm.model.count import count_parameters
from sparrowlm.report.read import Row, Run, number, read_run
from sparrowlm.report.verdict import YARDSTICKS, in_short
from sparrowlm.report.words import printable
from sparrowlm.share.export.source import Origin, Source

UNKNOWN = "unknown"
CURVE_ROWS = 8  # measurements shown
SAMPLE = 400  # characters of a sample
NAMES = 6  # files of the data named
ANCESTORS = 6  # runs behind a run that are looked for


class Facts(NamedTuple):
    """What the run does not say."""

    title: str  # of the shape: Qwen3
    dtype: str
    license: str  # empty: nobody told
    use: str  # how to use the files, in Markdown
    library: str  # Hugging Face's name for what opens them
    picture: bool  # whether loss.png is beside it


def card(source: Source, facts: Facts) -> str:
    """README.md, with the head that Hugging Face and ModelScope read."""
    origin = source.origins[0]
    run = read_run(origin.run.path)
    parts = [
        _head(facts),
        f"# {printable(source.name)}",
        _first_words(source, run, facts),
        f"## Use\n\n{facts.use}",
        _model(source, facts),
        _training(source, run),
        _data(source, run),
        _figures(run, origin.step, facts),
        _sample(run, origin.step),
        _unknown(source, facts),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _head(facts: Facts) -> str:
    return "\n".join(
        [
            "---",
            f"license: {json.dumps(facts.license or UNKNOWN, ensure_ascii=False)}",
            f"library_name: {facts.library}",
            "pipeline_tag: text-generation",
            "tags:",
            "- sparrow",
            "---",
        ]
    )


def _first_words(source: Source, run: Run, facts: Facts) -> str:
    size = show_count(count_parameters(source.config).total)
    does = "answers questions" if source.answers else "continues text"
    project = next(filter(None, (origin.run.imported_from() for origin in source.origins)), "")
    made = f"imported into Sparrow from {project}" if project else "trained with Sparrow"
    words = (
        f"A language model of {size} parameters that {does}, {made}. Its shape is {facts.title}'s."
    )
    told = _reached(run, source.origins[0].step)
    return f"{words} {told}" if told else words


def _reached(run: Run, step: int) -> str:
    """What the exported step reached; a run may have gone on to worse."""
    if not (run.train or run.evals):
        return ""
    held = measured_at(run, step)
    last = run.figure("steps")
    if last is None or step == last or held.get("val_loss") == run.figure("val_loss"):
        return in_short(run)
    loss, bits = held.get("val_loss"), held.get("val_bits_per_byte")
    facts = [f"{loss:.3f} nats per token"] if loss is not None else []
    facts += [f"{bits:.3f} bits per byte"] if bits is not None else []
    least = f", with a held-out loss of {', or '.join(facts)}" if facts else ""
    return f"The weights are those of step {step:,} of {last:,.0f}{least}."


def measured_at(run: Run, step: int) -> dict[str, float | None]:
    """The held-out figures of one step: of the last one those of the summary, which may have been
    taken of the whole split."""
    keys = ("val_loss", "val_bits_per_byte", "val_reward")
    if step == run.figure("steps"):
        return {key: run.figure(key) for key in keys}
    row = next((row for row in reversed(run.evals) if row.get("step") == step), {})
    return {key: number(row.get(key)) for key in keys}


def _model(source: Source, facts: Facts) -> str:
    config = source.config
    rows = [
        ("parameters", f"{count_parameters(config).total:,}"),
        ("step of the run", f"{source.origins[0].step:,}"),
        ("shape", facts.title),
        ("blocks", config.n_layers),
        ("width", config.d_model),
        ("heads", f"{config.n_heads}, of {config.head_dim}; {config.n_kv_heads} for keys"),
        ("width of the MLP", config.d_ff),
        *([("experts", f"{config.n_experts}, {config.experts_per_token} for a token")]
          if config.n_experts else []),
        ("context", f"{config.max_seq_len:,} tokens"),
        ("vocabulary", f"{source.tokenizer.vocab_size:,} (table of {config.vocab_size:,})"),
        ("weights in", facts.dtype),
    ]  # fmt: skip
    return f"## Model\n\n{_table(('', ''), rows)}"


def _training(source: Source, run: Run) -> str:
    """How the weights came about, back to the first run that is still there."""
    origin = source.origins[0]
    if origin.run.imported_from():
        return "## Training\n\nThe run was imported: how it was trained is not in it."
    recipe = origin.recipe
    rows = [("stage", recipe.stage)]
    for name, key, show in (
        ("steps", "steps", lambda value: f"{value:,.0f}"),
        ("tokens", "tokens", show_count),
        ("time", "wall_seconds", show_duration),
        ("tokens per second", "tokens_per_second", show_count),
    ):
        value = run.figure(key)
        rows += [(name, show(value))] if value is not None else []
    rows += [
        ("tokens in a step", f"{recipe.train.batch_tokens:,} in rows of {recipe.train.seq_len}"),
        ("optimizer", _optimizer(recipe)),
        ("precision", recipe.train.precision),
        ("seed", str(recipe.train.seed)),
    ]
    if recipe.lora.rank:
        rows.append(("LoRA", f"rank {recipe.lora.rank}, alpha {recipe.lora.alpha:g}, merged"))
    machine = ", ".join(str(run.machine[key]) for key in ("processor", "device", "gpu")
                        if run.machine.get(key))  # fmt: skip
    rows += [("machine", machine)] if machine else []
    behind = "".join(f"\n- {line}" for line in _ancestors(source.origins))
    told = f"\n\nIt began with the weights of:\n{behind}" if behind else ""
    return f"## Training\n\n{_table(('setting', ''), rows)}{told}"


def _optimizer(recipe: Recipe) -> str:
    rates = f"{recipe.optim.lr:g}"
    if recipe.optim.name == "muon":
        rates = f"{recipe.optim.muon_lr:g} for matrices, {rates} for the rest"
    return f"{recipe.optim.name}, rate {rates}, schedule {recipe.optim.schedule}"


def _ancestors(origins: tuple[Origin, ...]) -> Iterable[str]:
    """The runs that others began with, nearest first, as far as they are still on this disk."""
    waiting = [origin.recipe.init.from_ for origin in origins[:1]]
    waiting += [str(origin.run.path) for origin in origins[1:]]
    seen: set[Path] = set()
    for _ in range(ANCESTORS):
        waiting = [path for path in waiting if path and Path(path).resolve() not in seen]
        if not waiting:
            return
        path = Path(waiting.pop(0))
        seen.add(path.resolve())
        try:
            run, _ = find_run(path)
            told = read_run(run.path)
            recipe = run.recipe()
        except RunError:
            yield f"{path.name}, which is not on this disk any more"
            continue
        project = run.imported_from()
        yield f"{run.path.resolve().name} (stage {recipe.stage}): " + (
            f"imported from {project}." if project else in_short(told)
        )
        waiting.append(recipe.init.from_)


def _data(source: Source, run: Run) -> str:
    if source.origins[0].run.imported_from():
        return ""
    rows: list[tuple[object, ...]] = []
    for name, data in _datasets(run.data):
        of = f" of {name}" if name else ""
        entries = data.get("sources")
        held = (
            [one for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []
        )
        names = [str(entry["path"]) for entry in held if entry.get("path")]
        rows += [(f"files{of}", _listed(names))] if names else []
        size = sum(number(entry.get("bytes")) or 0 for entry in held)
        rows += [(f"bytes{of}", show_bytes(size))] if size else []
        splits = data.get("splits")
        for split, facts in splits.items() if isinstance(splits, dict) else ():
            counts = (f"{value:,} {key}" for key, value in facts.items() if type(value) is int)
            rows.append((f"split {split}{of}", ", ".join(counts)))
    if not rows and (paths := source.origins[0].recipe.data.path):
        rows.append(("files", _listed(list(paths))))
    return f"## Data\n\n{_table(('', ''), rows)}" if rows else "## Data\n\nUnknown."


def _datasets(data: Row) -> list[tuple[str, Row]]:
    """The description of a dataset, or those of a mixture's by name."""
    if "splits" in data or "sources" in data:
        return [("", data)]
    return [(name, part) for name, part in data.items() if isinstance(part, dict)]


def _figures(run: Run, step: int, facts: Facts) -> str:
    """Held-out numbers of the exported step beside the yardsticks, and how they fell."""
    held = measured_at(run, step)
    figures = [
        (f"held-out loss at step {step:,}, nats per token", held["val_loss"]),
        (f"held-out bits per byte at step {step:,}", held["val_bits_per_byte"]),
        (f"reward of held-out prompts at step {step:,}", held["val_reward"]),
        ("training loss at the end", run.figure("train_loss")),
        *((f"{name}, bits per byte of held-out text", number(run.summary.get(key)))
          for key, name in YARDSTICKS.items()),
    ]  # fmt: skip
    rows = [(name, f"{value:.4f}") for name, value in figures if value is not None]
    if not rows:
        return "## Figures\n\nNothing was measured."
    shown = _table(("figure", ""), rows)
    if facts.picture:
        shown += "\n\n![Loss over the steps](loss.png)"
    measured = [row for row in run.evals if number(row.get("val_loss")) is not None]
    if len(measured) > 1:
        shown += "\n\n" + _table(
            ("step", "tokens", "held-out loss", "bits per byte"), map(_measured, thinned(measured))
        )
    return f"## Figures\n\n{shown}"


def thinned(rows: list[Row]) -> list[Row]:
    """At most `CURVE_ROWS` of them, evenly, the first and the last among them.

    >>> [row["step"] for row in thinned([{"step": step} for step in range(100)])][-2:]
    [85, 99]
    """
    if len(rows) <= CURVE_ROWS:
        return rows
    last = CURVE_ROWS - 1
    return [rows[round(place * (len(rows) - 1) / last)] for place in range(CURVE_ROWS)]


def _measured(row: Row) -> tuple[str, ...]:
    def said(key: str, form: str) -> str:
        value = number(row.get(key))
        return "" if value is None else format(value, form)

    return (said("step", ",.0f"), said("tokens", ",.0f"), said("val_loss", ".4f"),
            said("val_bits_per_byte", ".4f"))  # fmt: skip


def _sample(run: Run, step: int) -> str:
    """The last one that was written up to the exported step."""
    written = [row for row in run.samples if (number(row.get("step")) or 0) <= step]
    if not written:
        return ""
    last = written[-1]
    prompt, text = str(last.get("prompt") or ""), str(last.get("text") or "")[:SAMPLE]
    lines = "\n".join(f"    {line}" for line in printable(text).splitlines())
    asked = f" after `{printable(prompt).replace('`', ' ')}`" if prompt.strip() else ""
    return f"## What it writes\n\nA sample of step {last.get('step')}{asked}:\n\n{lines}"


def _unknown(source: Source, facts: Facts) -> str:
    told = f"as told by who exported it: {facts.license}" if facts.license else UNKNOWN
    lines = [
        f"License: {told}. Sparrow's own covers the program, not these weights and their text.",
        "What is in the training text was not examined here: languages, authors, prejudices.",
        "The held-out text is a part of the same data: the figures say nothing of other text.",
        "Nothing was measured of truth, safety or fairness: it writes what is likely.",
    ]
    if not source.answers:
        lines.append("It continues text, and was not taught to follow instructions.")
    return "## What is not known\n\n" + "\n".join(f"- {line}" for line in lines)


def _listed(paths: list[str]) -> str:
    """Files by name and addresses whole, a few of them."""
    plain = [path if is_address(path) else Path(path).name for path in paths]
    names = list(dict.fromkeys(plain))
    more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
    return ", ".join(f"`{name}`" for name in names[:NAMES]) + more


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    def line(cells: Iterable[object]) -> str:
        plain = (printable(str(cell)).replace("|", "\\|").replace("\n", " ") for cell in cells)
        return "| " + " | ".join(plain) + " |"

    return "\n".join([line(head), "|" + " --- |" * len(head), *map(line, rows)])
