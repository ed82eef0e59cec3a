"""Turns of a conversation, in one form whatever form they came in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sparrowlm.errors import DataError
from sparrowlm.text.rows import is_text

ROLES = ("system", "user", "assistant", "tool")
Message = dict[str, Any]
"""role, content; of an assistant also reasoning_content and tool_calls."""


class Conversation(NamedTuple):
    """Turns in order."""

    messages: tuple[Message, ...]
    """At least one; as `message_of` makes them."""
    tools: tuple[dict[str, Any], ...] = ()
    """Function signatures that the assistant may call."""
    given: int = 0
    """How many messages at the start are prompt: an assistant's turn among them is not learned."""


def message_of(raw: object) -> Message:
    """A message with its content as a string, and tool calls as a list of objects.

    ShareGPT's `from` and `value` are read as role and content.

    Raises:
        DataError: no object, no role that is known, or a value of another kind.

    >>> message_of({"from": "human", "value": "hi"})
    {'role': 'user', 'content': 'hi'}
    """
    if not isinstance(raw, dict):
        raise DataError(f"a message is {type(raw).__name__}, not an object")
    role, content = raw.get("role"), raw.get("content")
    if role is None and "from" in raw:
        named = {"human": "user", "gpt": "assistant", "observation": "tool"}
        said_by = raw["from"]
        role = named.get(said_by, said_by) if isinstance(said_by, str) else said_by
        content = raw.get("value")
    if role not in ROLES:
        raise DataError(f"a message has the role {role!r}, which is none of {', '.join(ROLES)}")
    if content is None and role == "assistant":
        content = ""  # where tools are called, others leave it out
    found: Message = {"role": role, "content": _text(content, f"the content of a {role} turn")}
    if role != "assistant":
        return found
    if raw.get("reasoning_content") is not None:
        found["reasoning_content"] = _text(raw["reasoning_content"], "reasoning_content")
    elif "</think>" in found["content"]:
        # As the template reads it; here, so that every template gets it in one form.
        before, _, behind = found["content"].rpartition("</think>")
        found["reasoning_content"] = before.split("</think>")[0].split("<think>")[-1].strip("\n")
        found["content"] = behind.lstrip("\n")
    if calls := _parsed(raw.get("tool_calls"), "tool_calls"):
        found["tool_calls"] = [_call(call) for call in calls]
    return found


def conversation_of(
    messages: Iterable[object], tools: object = None, given: int = 0
) -> Conversation:
    """A conversation of messages as files have them; minimind keeps the tools in the system turn.

    Raises:
        DataError: as `message_of`, or there is no message.
    """
    listed = list(messages)
    if not tools and listed and isinstance(listed[0], dict):
        tools = listed[0].get("tools")
    found = tuple(map(message_of, listed))
    if not found:
        raise DataError("a conversation has no messages")
    return Conversation(found, tuple(_parsed(tools, "tools")), given)


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{name} is {type(value).__name__}, not a string")
    if not is_text(value):
        raise DataError(f"{name} holds half of a surrogate pair, which is no character")
    return value


def _parsed(value: object, name: str) -> list[dict[str, Any]]:
    """A list of objects, or one as the JSON in a string."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as fault:
            raise DataError(f"{name} is a string that is not JSON: {fault}") from fault
    if not value:
        return []
    if not isinstance(value, list | tuple) or not all(isinstance(one, dict) for one in value):
        raise DataError(f"{name} is not a list of objects")
    if not is_text(dump(value)):
        raise DataError(f"{name} holds half of a surrogate pair, which is no character")
    return list(value)


def _call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function") or call
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError("a tool call has no name")
    return {"name": function["name"], "arguments": function.get("arguments", {})}


def dump(value: object) -> str:
    """JSON as transformers' `tojson` writes it."""
    return json.dumps(value, ensure_ascii=False)


FOLLOWS = {
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
"""What may come behind each role; "" is the start."""


def order_fault(messages: Sequence[Message]) -> str:
    """What is wrong with the order of the roles, or nothing.

    >>> order_fault([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    'turn 2 is of the user, behind one of the user'
    """
    before = ""
    for number, message in enumerate(messages, 1):
        role = message["role"]
        if role not in FOLLOWS[before]:
            behind = f"behind one of the {before}" if before else "at the start"
            return f"turn {number} is of the {role}, {behind}"
        before = role
    return "" if before == "assistant" else f"the last turn is of the {before}"


def empty_answers(conversation: Conversation) -> tuple[int, int]:
    """How many answers that are to be learned say nothing and call nothing, and how many there
    are."""
    answers = [
        message
        for message in conversation.messages[conversation.given :]
        if message["role"] == "assistant"
    ]
    empty = [one for one in answers if not one["content"].strip() and not one.get("tool_calls")]
    return len(empty), len(answers)
