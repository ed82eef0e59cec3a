"""Readers of conversations, preferences and labelled completions.

The files are JSON lines, JSON arrays (both perhaps compressed) and Parquet. Every row becomes one
`Found` or one `Rejected`, so that both together are the number of rows.

    chats         {"conversations": [{"role", "content", …}, …]}, {"messages": […]},
                  {"instruction", "input", "output"}
    preferences   {"chosen": [messages], "rejected": [messages]}, {"prompt", "chosen", "rejected"}
    labelled      {"prompt", "completion", "label"}
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from sparrowlm.errors import DataError
from sparrowlm.text.arrays import read_elements
from sparrowlm.text.documents import format_of
from sparrowlm.text.parquet import read_parquet_rows
from sparrowlm.text.reading import OnRead
from sparrowlm.text.rows import Rejected, clean, parse_row, read_row_lines
from sparrowlm.text.turns import Conversation, conversation_of

Value = TypeVar("Value")
KEYS = ("conversations", "messages", "conversation")


class Pair(NamedTuple):
    """Two answers to one prompt, the better one first."""

    chosen: Conversation
    rejected: Conversation


class Labelled(NamedTuple):
    """An answer and whether it is wanted."""

    conversation: Conversation
    wanted: bool


class Found(NamedTuple, Generic[Value]):
    """What a row says, and where it is."""

    value: Value
    source: str
    line: int


def read_values(
    path: Path, parse: Callable[[dict[str, Any]], Value], on_read: OnRead = None
) -> Iterator[Found[Value] | Rejected]:
    """One value or rejection for each row of a file.

    Args:
        path: the file.
        parse: `chat_of`, `pair_of` or `labelled_of`, or what gives the row back.
        on_read: told of bytes taken from the disk.

    Raises:
        DataError: the file cannot be read, is truncated, or holds no rows of JSON.
    """
    for line, content, fault in _contents(path, on_read):
        row, fault = ({}, fault) if fault else parse_row(content)
        if not fault:
            try:
                yield Found(parse(_cleaned(row)), str(path), line)
                continue
            except DataError as told:
                fault = told.what
            except RecursionError:  # JSON's own reader goes deeper than ours
                fault = "nested too deeply"
        yield Rejected(str(path), line, fault)


def _cleaned(value: Any) -> Any:
    r"""The value with `\r\n` as `\n` in every string."""
    match value:
        case str():
            return clean(value)
        case dict():
            return {key: _cleaned(one) for key, one in value.items()}
        case list():
            return [_cleaned(one) for one in value]
        case _:
            return value


def chat_of(row: dict[str, Any]) -> Conversation:
    """The conversation of a row.

    Raises:
        DataError: none is there.

    >>> len(chat_of({"instruction": "Add.", "input": "1 2", "output": "3"}).messages)
    2
    """
    for key in KEYS:
        if key in row:
            return conversation_of(_messages(row[key], key), row.get("tools"))
    if "instruction" in row and "output" in row:
        asked = [row["instruction"]] + ([row["input"]] if row.get("input") else [])
        if not all(isinstance(text, str) for text in asked):
            raise DataError("'instruction' or 'input' is not a string")
        before = [{"role": "system", "content": row["system"]}] if row.get("system") else []
        turns = [*before, _turn("user", "\n".join(asked)), _turn("assistant", row["output"])]
        return conversation_of(turns)
    raise DataError(_missing("conversations', 'messages' or 'instruction' with 'output", row))


def pair_of(row: dict[str, Any]) -> Pair:
    """The two answers of a row; the messages they begin with alike are the prompt.

    Raises:
        DataError: an answer is missing, or they do not differ.
    """
    for key in ("chosen", "rejected"):
        if key not in row:
            raise DataError(_missing(key, row))
        if not row[key]:
            raise DataError(f"{key!r} is empty")
    asked = _asked(row.get("prompt"))
    sides = [_side(row[key], key, asked, row.get("tools")) for key in ("chosen", "rejected")]
    chosen, rejected = (side.messages for side in sides)
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if chosen == rejected:
        raise DataError("'chosen' and 'rejected' are the same")
    for key, messages in (("chosen", chosen), ("rejected", rejected)):
        if not any(message["role"] == "assistant" for message in messages[shared:]):
            raise DataError(f"{key!r} has no answer of its own")
    return Pair(*(side._replace(given=shared) for side in sides))


def labelled_of(row: dict[str, Any]) -> Labelled:
    """A completion and whether it is wanted.

    Raises:
        DataError: a key is missing, or the label is neither true nor false.
    """
    for key in ("prompt", "completion", "label"):
        if key not in row:
            raise DataError(_missing(key, row))
    if row["label"] not in (True, False):  # 1 and 0 as well
        raise DataError(f"'label' is {row['label']!r}, and must be true or false")
    asked = _asked(row["prompt"])
    found = _side(row["completion"], "completion", asked, row.get("tools"))
    return Labelled(found._replace(given=len(asked)), bool(row["label"]))


def _asked(prompt: object) -> list[object]:
    """A prompt's messages; none where the answers bring it."""
    if prompt is None or prompt == "":
        return []
    return [_turn("user", prompt)] if isinstance(prompt, str) else _messages(prompt, "prompt")


def _side(answer: object, key: str, asked: list[object], tools: object) -> Conversation:
    """A whole conversation, or an answer behind its prompt."""
    if isinstance(answer, str):
        if not asked:
            raise DataError(f"{key!r} is a string, and there is no 'prompt'")
        return conversation_of([*asked, _turn("assistant", answer)], tools)
    if isinstance(answer, dict):
        answer = [answer]
    messages = _messages(answer, key)
    # Some files repeat the prompt at the head of both sides.
    whole = not asked or messages[: len(asked)] == asked
    return conversation_of(messages if whole else [*asked, *messages], tools)


def _messages(value: object, key: str) -> list[object]:
    if not isinstance(value, list):
        raise DataError(f"{key!r} is {type(value).__name__}, not a list of messages")
    return value


def _turn(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


def _missing(key: str, row: dict[str, Any]) -> str:
    present = ", ".join(map(repr, list(row)[:5])) or "none"
    return f"no key '{key}'; it has {present}"


def _contents(path: Path, on_read: OnRead) -> Iterator[tuple[int, bytes, str]]:
    """(line, JSON, fault) of every row."""
    match format_of(path):
        case "lines":
            return read_row_lines(path, on_read)
        case "array":
            return read_elements(path, on_read)
        case "parquet":
            return read_parquet_rows(path, on_read)
        case other:
            raise DataError(
                f"holds {other}, not rows of JSON",
                where=str(path),
                fix="conversations are read from .jsonl, .json (.gz, .zst) and .parquet",
            )
