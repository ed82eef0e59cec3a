"""What a completion is worth: plain functions, named in `rollout.rewards` and added up.

    exact_match     1 where it is the row's `gold`, white space around both aside
    final_number    1 where its answer is `gold`'s: the number after ####, else the last one
    format          1 where there is one thought, `<think> … </think>`, and an answer behind it
    length:64       1 up to so many characters, then less, 0 from twice as many
    regex:PATTERN   1 where the pattern is found
    file.py:name    a function of your own, `name(completion: str, row: dict) -> float`

A row is the line of the prompt file: "prompt", "gold" and whatever else is there; "transcript" is
added, the completion with its tool calls and their results where a tool was called.

Nothing here imports PyTorch: rewards are computed in processes of their own (`infer/judging.py`).
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparrowlm.errors import ConfigError

Reward = Callable[[str, dict[str, Any]], float]

_NUMBER = re.compile(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_THOUGHT = re.compile(r"\s*(?:<think>)?.*?</think>\s*\S", re.DOTALL)


def exact_match(completion: str, row: dict[str, Any]) -> float:
    """1 where the completion is `row["gold"]`.

    >>> exact_match(" 42\\n", {"gold": "42"})
    1.0
    """
    return float(completion.strip() == str(row["gold"]).strip())


def final_number(completion: str, row: dict[str, Any]) -> float:
    """1 where the completion's number is that of `row["gold"]`.

    >>> final_number("so 1,200 / 2\\n#### 600.0", {"gold": "600"})
    1.0
    """
    said, wanted = number_in(completion), number_in(str(row["gold"]))
    return float(said is not None and said == wanted)


def number_in(text: str) -> float | None:
    """The number after the last `####`, else the last number; None where there is none."""
    _, mark, behind = text.rpartition("####")
    found = _NUMBER.findall(behind if mark else text)
    if not found:
        return None
    value = float(found[0 if mark else -1].replace(",", ""))
    return value if math.isfinite(value) else None


def format(completion: str, row: dict[str, Any]) -> float:
    """1 where the completion is one thought and an answer behind it. A prompt may have opened the
    thought already.

    >>> format("<think>\\n2 + 2\\n</think>\\n\\n4", {}), format("4", {})
    (1.0, 0.0)
    """
    once = completion.count("</think>") == 1 and completion.count("<think>") <= 1
    return float(once and _THOUGHT.match(completion) is not None)


def length(limit: str) -> Reward:
    """1 up to `limit` characters, then falling evenly to 0 at twice as many."""
    most = int(limit)

    def reward(completion: str, row: dict[str, Any]) -> float:
        return min(1.0, max(0.0, 2 - len(completion) / most))

    return reward


def regex(pattern: str) -> Reward:
    """1 where `pattern` is found in the completion; `.` is any character, line ends too."""
    compiled = re.compile(pattern, re.DOTALL)

    def reward(completion: str, row: dict[str, Any]) -> float:
        return float(compiled.search(completion) is not None)

    return reward


REWARDS: dict[str, Reward] = {
    "exact_match": exact_match,
    "final_number": final_number,
    "format": format,
}
MADE: dict[str, Callable[[str], Reward]] = {"length": length, "regex": regex}
"""Rewards that need to be told something: NAME:WHAT."""


def check_name(name: str) -> None:
    """Whether a reward exists, as far as can be told without running anything of the user's.

    Raises:
        ConfigError: no such reward, file or pattern.
    """
    if path_of(name) is None:
        named(name)
    elif not path_of(name)[0].is_file():  # pyright: ignore[reportOptionalSubscript]
        raise ConfigError(
            "no such file", where=f'rollout.rewards, "{name}"', fix="give its path and a function"
        )


def path_of(name: str) -> tuple[Path, str] | None:
    """The file and the function of `file.py:function`; None of a name of ours.

    >>> path_of("regex:a:b"), path_of("mine.py:judge")[1]
    (None, 'judge')
    """
    file, colon, function = name.rpartition(":")
    if colon and file.endswith(".py") and not name.startswith("regex:"):
        return Path(file), function
    return None


def named(name: str) -> Reward:
    """A reward of ours.

    Raises:
        ConfigError: none of that name, or one that needs to be told something else.
    """
    kind, colon, what = name.partition(":")
    if not colon and kind in REWARDS:
        return REWARDS[kind]
    where = f'rollout.rewards, "{name}"'
    if kind not in MADE:
        known = ", ".join([*REWARDS, "length:64", "regex:PATTERN", "file.py:function"])
        raise ConfigError("no such reward", where=where, fix=f"choose from {known}")
    try:
        if kind == "length" and int(what) < 1:
            raise ValueError("the length is not above zero")
        return MADE[kind](what)
    except (ValueError, re.error) as fault:
        raise ConfigError(f"cannot be used: {fault}", where=where, fix=f"write {kind}:…") from fault


def load(name: str) -> Reward:
    """A reward, the user's file run where it is theirs: for a process of its own.

    Raises:
        ConfigError: there is none.
    """
    place = path_of(name)
    if place is None:
        return named(name)
    path, function = place
    where = f'rollout.rewards, "{name}"'
    spec = importlib.util.spec_from_file_location(f"rewards_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError("is no Python file", where=where)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as fault:
        raise ConfigError(f"cannot be run: {type(fault).__name__}: {fault}", where=where) from fault
    found = getattr(module, function, None)
    if not callable(found):
        raise ConfigError(f"has no function {function!r}", where=where)
    return found  # pyright: ignore[reportReturnType]


def judged(reward: Reward, completion: str, row: dict[str, Any]) -> tuple[float, str]:
    """What a reward says, and why that cannot be used where it cannot."""
    try:
        value = reward(completion, row)
    except Exception as fault:
        return 0.0, f"raised {type(fault).__name__}: {fault}"
    try:
        number = float(value)
    except (TypeError, ValueError):
        return 0.0, f"returned {value!r}, which is no number"
    if isinstance(value, str) or not math.isfinite(number):
        return 0.0, f"returned {value!r}, which is no finite number"
    return number, ""
