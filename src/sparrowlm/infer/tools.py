"""Tools that a completion may call, and the calls in its text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sparrowlm.errors import ConfigError
from sparrowlm.infer.children import Child, Silent
from sparrowlm.text.reply import parse_tool_call, tool_calls

OUTPUT = 1000  # characters of a result that are handed back
SECONDS = 2.0  # that one call may take

SCHEMAS: dict[str, dict[str, Any]] = {
    "calculator": {
        "type": "function",
        "function": {
            "name": "calculator",
            "description": "Evaluates an arithmetic expression.",
            "parameters": {
                "type": "object",
                "properties": {"expression": {"type": "string"}},
                "required": ["expression"],
            },
        },
    }
}
"""What a model is told of each tool."""
_PROGRAMS = {"calculator": ("sparrowlm.infer.calculator", "expression")}


class Toolbox:
    """Tools by name, each in a process of its own that is replaced where it hangs.

    Args:
        names: as in `rollout.tools`.

    Raises:
        ConfigError: no such tool.

    >>> with Toolbox(("calculator",)) as tools:
    ...     tools.answer('<tool_call>{"name": "calculator", "arguments": {"expression": "6*7"}}'
    ...                  '</tool_call>')
    '42'
    """

    def __init__(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in _PROGRAMS:
                known = ", ".join(_PROGRAMS)
                raise ConfigError(
                    "no such tool", where=f'rollout.tools, "{name}"', fix=f"choose from {known}"
                )
        self.names = tuple(names)
        self._children = {name: Child(_PROGRAMS[name][0]) for name in names}

    def __enter__(self) -> Toolbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        for child in self._children.values():
            child.close()

    def answer(self, text: str) -> str | None:
        """The result of the last call in a text; None where it makes none. What is wrong with a
        call is its result, so that a model can learn from it."""
        calls = tool_calls(text)
        if not calls:
            return None
        call = parse_tool_call(calls[-1])
        if call is None:
            return "error: a call is JSON with a name and arguments"
        name, written = call
        if name not in self.names:
            return f"error: no such tool; there is {', '.join(self.names)}"
        key = _PROGRAMS[name][1]
        arguments = _parsed(written)
        if not isinstance(arguments, dict) or not isinstance(arguments.get(key), str):
            return f'error: {name} needs {{"{key}": "…"}}'
        try:
            told = self._children[name].ask({key: arguments[key]}, SECONDS)
        except Silent as fault:
            return f"error: {name} {fault}"
        return str(told["result"])[:OUTPUT]


def _parsed(written: str) -> object:
    """JSON's value; None where it is none."""
    try:
        return json.loads(written)
    except (ValueError, RecursionError):
        return None
