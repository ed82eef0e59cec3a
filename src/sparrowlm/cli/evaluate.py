"""`sparrow evaluate RUN…`: figures of one or several runs, beside each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional, UseAppendAction, arg

if TYPE_CHECKING:
    from sparrowlm.checkpoint import RunFolder
    from sparrowlm.evaluate.figures import Figure, Measured
    from sparrowlm.pipeline import Loaded


@dataclass(frozen=True)
class Asked:
    """What is to be measured of each run. A comment behind a field is its help text."""

    held_out: bool = False  # What the run held out, also where something else is asked for
    data: Annotated[tuple[str, ...], UseAppendAction] = ()  # Text or chats, prepared or not
    kind: Literal["auto", "text", "chats"] = "auto"  # Of data; auto looks at the first row
    split: Literal["", "train", "val"] = ""  # Of prepared data; what was held out, or all of it
    text_key: str = "text"  # Key of the text in a JSON row of data, or its column in a table
    encoding: str = "utf-8"  # Of plain text and .csv files
    seq_len: int = 0  # Tokens of a window; 0: as in training
    stride: int = 0  # Tokens from a window to the next, for more context; 0: as at the run's end
    windows: int = 0  # Windows to read, evenly over the data; 0: all
    task: Annotated[tuple[str, ...], UseAppendAction] = ()  # A TOML file, or a name; NAME=ROWS
    limit: int = 0  # Rows of a task, documents of a task of lm-eval; 0: all
    samples: int = 0  # Texts to write, whose repetition is measured
    sample_tokens: int = 200  # Longest such text
    temperature: float | None = None  # Of such texts; that of the run's samples, unless told
    harness: str = ""  # Tasks of lm-eval, with commas between
    harness_tasks: Path | None = None  # A folder of further tasks for it
    harness_shots: int | None = None  # Examples that it shows first; as the task says, unless told
    harness_chat: bool = False  # Put its prompts into the chat template


HELD_OUT = Asked()


def evaluate(
    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN")],
    *,
    asked: Annotated[Asked, arg(name="")] = HELD_OUT,
    json: Path | None = None,
    adapter: Path | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> None:
    """Measure runs. With nothing else asked for, what each run held out in training.

    Args:
        runs: Run folders, each taken at its best step, or checkpoints of them.
        asked: What is measured.
        json: A file to write the figures to, with their sums and counts.
        adapter: Changes to measure with: a LoRA run on this base, or an adapter's folder of PEFT's.
        device: auto, cpu, cuda or mps.
        precision: auto, float32, bfloat16, float16 or float64.
    """
    from sparrowlm import files
    from sparrowlm.cli.counts import at_least
    from sparrowlm.errors import ConfigError
    from sparrowlm.pipeline import load_run

    at_least(0, limit=asked.limit, samples=asked.samples, harness_shots=asked.harness_shots or 0)
    if not runs:
        raise ConfigError("no run is named", fix="sparrow evaluate runs/quickstart")
    if not (asked.data or asked.task or asked.samples or asked.harness):
        asked = replace(asked, held_out=True)
    console = Console(highlight=False)
    found: list[dict[str, Any]] = []
    for run in runs:
        loaded = load_run(run, device, precision, adapter)
        found.append(
            {
                "run": str(run),
                "step": loaded.step,
                "parameters": sum(one.numel() for one in loaded.model.parameters()),
                "tokenizer": loaded.tokenizer.fingerprint,
                "precision": loaded.runtime.precision,
                "measured": measure_run(run, loaded, asked, console),
            }
        )
    show(found, console)
    if json is not None:
        for one in found:
            one["measured"] = [measured.as_json() for measured in one["measured"]]
        files.write_json(json, {"runs": found})
        console.print(Text(str(json), "bold"), soft_wrap=True)


def measure_run(run: Path, loaded: Loaded, asked: Asked, console: Console) -> list[Measured]:
    """Everything that is asked for, of one run."""
    from sparrowlm.checkpoint import find_run
    from sparrowlm.cli.show import PrepareProgress
    from sparrowlm.config import DataConfig
    from sparrowlm.config.units import show_count
    from sparrowlm.evaluate.answering import Subject, answer
    from sparrowlm.evaluate.corpus import Reading, check_reading
    from sparrowlm.evaluate.tasks import load_task

    subject = Subject(loaded.model, loaded.tokenizer, loaded.runtime)
    recipe, context = loaded.recipe, loaded.model.config.max_seq_len
    seq_len = asked.seq_len or recipe.train.seq_len or context
    reading = Reading(seq_len, asked.windows, asked.stride, document_mask=recipe.data.document_mask)
    check_reading(reading, context)
    tasks = [load_task(name, asked.limit) for name in asked.task]
    check_tasks([*(task.name for task in tasks), *_harness_names(asked)])
    folder, _ = find_run(run)
    found: list[Measured] = []
    with PrepareProgress(console) as bytes_read:
        if asked.held_out:
            from sparrowlm.train.held_out import held_out

            found += held_out(
                folder, loaded.step, loaded.model, loaded.runtime, reading, bytes_read
            )
        config = DataConfig(
            text_key=asked.text_key,
            encoding=asked.encoding,
            token_dtype=recipe.data.token_dtype,  # a headerless file is as those it was trained on
        )
        vocabulary = folder.path / "tokenizer"
        found += _data(asked, subject, vocabulary, reading, config, bytes_read)
    with PrepareProgress(console, shown=show_count) as counted:
        found += [answer(task, subject, counted) for task in tasks]
        found += _written(asked, subject, loaded, folder, counted)
        if asked.harness:
            found += _harness(asked, subject, counted)
    return found


def _data(
    asked: Asked, subject: Any, vocabulary: Path, reading: Any, config: Any, progress: Any
) -> list[Measured]:
    """The text and chats that were named."""
    from sparrowlm.evaluate.corpus import measure_data

    return [
        measure_data(
            path,
            subject,
            vocabulary,
            reading,
            kind=asked.kind,
            split=asked.split,
            config=config,
            progress=progress,
        )
        for path in asked.data
    ]


def _harness_names(asked: Asked) -> list[str]:
    return [name.strip() for name in asked.harness.split(",") if name.strip()]


def check_tasks(names: Sequence[str]) -> None:
    """Whether every task has a name of its own, by which it stands in the table.

    Raises:
        ConfigError: two have the same.
    """
    from sparrowlm.errors import ConfigError

    for name, count in Counter(names).items():
        if count > 1:
            raise ConfigError(
                f"{count} tasks have the name {name!r}",
                where="--task, --harness",
                why="the table has one place for it",
                fix="give each its own `name` in its TOML file, or its own file of rows",
            )


def _harness(asked: Asked, subject: Any, progress: Any) -> list[Measured]:
    """Tasks of lm-eval."""
    from sparrowlm.evaluate.harness import harness

    return harness(
        _harness_names(asked),
        subject,
        folder=asked.harness_tasks,
        limit=asked.limit,
        shots=asked.harness_shots,
        chat=asked.harness_chat,
        progress=progress,
    )


def _written(
    asked: Asked, subject: Any, loaded: Loaded, run: RunFolder, progress: Any
) -> list[Measured]:
    """What the run writes from the prompts of its samples, and what it held out, where that is
    text, as a measure for it."""
    if not asked.samples:
        return []
    from sparrowlm.errors import UserError
    from sparrowlm.evaluate.writing import measure_text, measure_writing
    from sparrowlm.infer.sampling import Sampling
    from sparrowlm.train.held_out import held_out_text

    settings = loaded.recipe.samples
    sampling = Sampling(
        temperature=settings.temperature if asked.temperature is None else asked.temperature,
        top_k=settings.top_k,
        max_tokens=asked.sample_tokens,
    )
    written = measure_writing(
        subject,
        settings.prompts or ("",),
        asked.samples,
        sampling,
        chat=loaded.converses,
        progress=partial(progress, "writing"),
    )
    try:
        text = held_out_text(run, loaded.runtime, progress)
    except UserError as fault:
        note = f"its own held-out text, to compare with, could not be read: {fault.what}"
        return [replace(written, notes=(*written.notes, note))]
    if not text:
        return [written]
    return [written, measure_text(text, asked.samples, asked.sample_tokens)]


def show(found: Sequence[dict[str, Any]], console: Console) -> None:
    """A table with a column for each run, and below it how everything was measured."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("")
    for one in found:
        table.add_column(Text(one["run"], "bold"), justify="right", overflow="fold")
    names = list(dict.fromkeys(measured.name for one in found for measured in one["measured"]))
    for name in names:
        own = [{each.name: each for each in one["measured"]}.get(name) for one in found]
        table.add_row(Text(name, "bold"))
        for figure in dict.fromkeys(key for one in own if one for key in one.figures):
            cells = [_cell(one.figures.get(figure)) if one else Text("") for one in own]
            table.add_row(Text(f"  {figure}"), *cells)
    console.print(table)
    console.print()
    for name in names:
        told: dict[tuple[str, ...], list[str]] = {}
        for one in found:
            for each in one["measured"]:
                if each.name == name:
                    told.setdefault((each.how, *each.notes), []).append(one["run"])
        for (how, *notes), runs in told.items():
            of = f" ({', '.join(runs)})" if len(told) > 1 else ""
            console.print(Text(f"{name}{of}: {how}", "dim"), soft_wrap=True)
            for note in notes:
                console.print(Text(f"  {note}", "yellow"), soft_wrap=True)
    for warning in warnings_of(found):
        console.print(Text(warning, "yellow"), soft_wrap=True)


def warnings_of(found: Sequence[dict[str, Any]]) -> list[str]:
    """What makes columns of the table no comparison."""
    own = {each.data for one in found for each in one["measured"] if each.name == "held out"}
    checks = {
        "the runs held out different data: --data FILE compares them on the same": len(own) > 1,
        "the runs have different vocabularies: compare bits_per_byte, not loss": len(
            {one["tokenizer"] for one in found}
        )
        > 1,
    }
    return [text for text, is_so in checks.items() if is_so]


def _cell(figure: Figure | None) -> Text:
    """A figure with its standard error."""
    if figure is None:
        return Text("")
    if figure.value is None:
        return Text("not finite" if figure.count else "nothing counted", "yellow")
    error = "" if figure.stderr is None else f" ± {figure.stderr:.4f}"
    return Text(f"{figure.value:.4f}{error}")
