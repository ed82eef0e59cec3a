"""Small tasks of one's own: a TOML file that says how to ask, and a file of rows beside it.

    name = "capitals"                        rows of capitals.jsonl:
    kind = "choice"                          {"country": "France", "choices": ["Rome", "Paris"],
    prompt = "The capital of {country} is"    "gold": 1}
    before = " "

`choice` asks which of several continuations the model finds likeliest; `generate` lets it write
and asks a scorer. A template is text with `{key}` for a row's values and `{{` for a brace; it runs
nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sparrowlm.config.load import build_table, line_numbers, near_miss, read_toml, refuse
from sparrowlm.errors import ConfigError, DataError
from sparrowlm.objectives.rewards import check_name, path_of
from sparrowlm.text.documents import find_inputs
from sparrowlm.text.rows import parse_row, read_row_lines

_PACKAGE = Path(__file__).parents[1]
_MARK = re.compile(r"\{\{|\}\}|\{(\w+)\}|[{}]")


@dataclass(frozen=True)
class TaskConfig:
    """A task file. A comment behind a field says what it is."""

    name: str = ""  # In tables; derived: the file's own
    kind: Literal["choice", "generate"] = "choice"  # Choose a continuation, or write one
    about: str = ""  # A sentence for people
    rows: str = ""  # JSON lines, beside this file; derived: its name with .jsonl
    prompt: str = "{prompt}"  # What is asked
    before: str = ""  # Between a prompt and its answer; not in a chat
    gold: str = "gold"  # Key of the right answer; choice: its place from 0, or the text itself
    chat: bool = False  # Prompts are a user's turns
    system: str = ""  # chat: a system turn before each
    shots: int = 0  # Rows that are shown with their answers first
    shots_rows: str = ""  # A file to take them from; derived: the rows, but for the one asked
    between: str = "\n\n"  # Between shots; not in a chat
    choices: str = "choices"  # choice: key of the list of continuations
    options: tuple[str, ...] = ()  # choice: the same continuations for all rows instead
    scorer: str = "exact_match"  # generate: a reward, mine.py:name beside this file; 1 is right
    n: int = 1  # generate: completions of each prompt
    k: tuple[int, ...] = (1,)  # generate: pass@k for each
    max_tokens: int = 64  # generate: longest completion
    temperature: float = 0.0  # generate: 0 writes the likeliest
    top_k: int = 0  # generate: among the k likeliest; 0: all
    seed: int = 1337  # generate: of the draws
    stop: tuple[str, ...] = ()  # generate: strings that end a completion


class TaskRow(NamedTuple):
    """A row of a task."""

    values: dict[str, Any]
    place: str
    """`arithmetic.jsonl:12`."""


@dataclass(frozen=True)
class Task:
    """What is asked, and of what."""

    config: TaskConfig
    path: Path
    rows: list[TaskRow]
    shots: list[TaskRow]
    """Candidates, in order."""

    @property
    def name(self) -> str:
        """In tables."""
        return self.config.name

    def shown(self, number: int) -> list[TaskRow]:
        """The rows that stand before row `number` with their answers: the first ones that are not
        the row itself."""
        asked = self.rows[number].values
        others = (row for row in self.shots if row.values != asked)
        return [row for row, _ in zip(others, range(self.config.shots), strict=False)]


def load_task(name: str, limit: int = 0) -> Task:
    """A task: the path of a TOML file, or the name of one that comes with Sparrow; `NAME=ROWS`
    takes its rows from another file, whose name is then part of the task's.

    Args:
        name: as typed.
        limit: rows to take, from the beginning; 0: all.

    Raises:
        ConfigError: no such task, or a key or value that does not fit; all of them together.
        DataError: no rows, or a row that lacks what the task asks for.
    """
    name, _, elsewhere = name.partition("=")
    path = find_task(name)
    values, text = read_toml(path)
    faults: list[str] = []
    config: TaskConfig = build_table(TaskConfig, values, "", faults, line_numbers(text))
    own_name = config.name or path.stem
    full_name = f"{own_name}={Path(elsewhere).name}" if elsewhere else own_name
    config = replace(config, name=full_name, scorer=_beside(config.scorer, path.parent))
    refuse(faults + _faults(config), str(path))
    own = path.parent / (config.rows or f"{path.stem}.jsonl")
    if not elsewhere and not own.is_file():
        raise DataError(
            "the rows of the task are not there",
            where=str(own),
            fix=f"name a file that holds some: --task {name}=FILE",
        )
    rows = read_rows(elsewhere or str(own))
    shots = read_rows(str(path.parent / config.shots_rows)) if config.shots_rows else rows
    task = Task(config, path, rows[:limit] if limit else rows, shots if config.shots else [])
    if config.shots and any(len(task.shown(n)) < config.shots for n in range(len(task.rows))):
        raise ConfigError(
            f"asks for {config.shots} shots, and there are not as many rows",
            where=str(path),
            fix="lower shots, or name more rows in shots_rows",
        )
    return task


def find_task(name: str) -> Path:
    """The file of a task.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    path = Path(name)
    if path.is_file():
        return path
    folders = [_PACKAGE / "recipes" / "tasks", _PACKAGE.parents[1] / "recipes" / "tasks"]
    found = {file.stem: file for folder in folders for file in folder.glob("*.toml")}
    if name in found:
        return found[name]
    hint = near_miss(name, sorted(found)).removeprefix("; ")
    raise ConfigError(
        "no such task", where=f"--task {name}", fix=f"give a TOML file; {hint}" if hint else ""
    )


def read_rows(path: str) -> list[TaskRow]:
    """Every row of a file of JSON lines, compressed or not.

    Raises:
        DataError: no such file, a row that is no JSON object, or no row.
    """
    found = []
    for file in find_inputs([path]):
        for line, content, fault in read_row_lines(file):
            values, reason = ({}, fault) if fault else parse_row(content)
            if reason:
                raise DataError(reason, where=f"{file}:{line}", fix="write one JSON object a line")
            found.append(TaskRow(values, f"{file}:{line}"))
    if not found:
        raise DataError("holds no rows", where=path)
    return found


def fill(template: str, row: TaskRow) -> str:
    """A template with a row's values in it.

    Raises:
        DataError: the row lacks a key, or the template has a lone brace.

    >>> fill("{a} + {b} = {{}}", TaskRow({"a": 1, "b": 2}, ""))
    '1 + 2 = {}'
    """

    def value(mark: re.Match[str]) -> str:
        if mark[0] in ("{{", "}}"):
            return mark[0][0]
        if mark[1] is None:
            raise DataError(
                f"has a lone {mark[0]}", where="the task's template", fix=f"write {mark[0] * 2}"
            )
        return _text(_value(row, mark[1]))

    return _MARK.sub(value, template)


def choices_of(config: TaskConfig, row: TaskRow) -> tuple[list[str], int]:
    """The continuations to choose from, and which of them is right.

    Raises:
        DataError: fewer than two, or none of them is right.
    """
    found = list(config.options) or _value(row, config.choices)
    if not isinstance(found, list) or len(found) < 2:
        raise DataError(f"{config.choices!r} is no list of two or more", where=row.place)
    texts, gold = [_text(one) for one in found], _value(row, config.gold)
    if not all(texts):
        raise DataError(f"{config.choices!r} has an empty choice", where=row.place)
    if isinstance(gold, str) and gold in texts:
        gold = texts.index(gold)
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(texts):
        raise DataError(
            f"{config.gold!r} is {gold!r}, and must be one of the choices or its place, 0 to"
            f" {len(texts) - 1}",
            where=row.place,
        )
    return texts, gold


def answer_of(config: TaskConfig, row: TaskRow) -> str:
    """The right answer of a row, as a shot shows it."""
    if config.kind == "choice":
        texts, gold = choices_of(config, row)
        return texts[gold]
    return _text(_value(row, config.gold))


def context_of(task: Task, number: int) -> str:
    """What stands before the answer of a row, shots and all, as plain text."""
    config = task.config
    shown = [
        fill(config.prompt, row) + config.before + answer_of(config, row)
        for row in task.shown(number)
    ]
    return config.between.join([*shown, fill(config.prompt, task.rows[number])])


def messages_of(task: Task, number: int) -> list[dict[str, Any]]:
    """The same as a chat."""
    config = task.config
    found = [{"role": "system", "content": config.system}] if config.system else []
    for row in task.shown(number):
        found.append({"role": "user", "content": fill(config.prompt, row)})
        found.append({"role": "assistant", "content": answer_of(config, row)})
    return [*found, {"role": "user", "content": fill(config.prompt, task.rows[number])}]


def _faults(config: TaskConfig) -> list[str]:
    """What no task can be."""
    checks = {
        f"shots is {config.shots}, and must be 0 or more": config.shots < 0,
        f"n is {config.n}, and must be 1 or more": config.n < 1,
        f"k is {list(config.k)}, and each must be 1 to n, {config.n}": not config.k
        or not all(1 <= k <= config.n for k in config.k),
        "n is above 1 and temperature 0: all completions would be the same": config.n > 1
        and config.temperature == 0,
        "options has one entry: there is nothing to choose": len(config.options) == 1,
        "system is set, and chat is false": bool(config.system) and not config.chat,
    }
    found = [fault for fault, is_so in checks.items() if is_so]
    if config.kind == "generate":
        try:
            check_name(config.scorer)
        except ConfigError as fault:
            found.append(f'scorer "{config.scorer}" {fault.what}; {fault.fix}')
    return found


def _beside(scorer: str, folder: Path) -> str:
    """A function of a file is looked for beside the task."""
    place = path_of(scorer)
    return scorer if place is None else f"{folder / place[0]}:{place[1]}"


def _value(row: TaskRow, key: str) -> Any:
    if key not in row.values:
        hint = near_miss(key, row.values).removeprefix("; ")
        raise DataError(f"no key {key!r}", where=row.place, fix=hint)
    return row.values[key]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)
