r"""What an assistant wrote, taken apart: its thoughts, what it says, the tools it calls.

`text.chat` writes an answer as one text,

    <think>\n…\n</think>\n\n…\n<tool_call>\n{"name": …, "arguments": …}\n</tool_call>

and this is the way back, while the text still comes. A thought stands at the beginning or nowhere;
a call inside of a thought is part of the thought.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, NoReturn

from sparrowlm.text.rows import is_text
from sparrowlm.text.stream import overlap
from sparrowlm.text.turns import Message, dump

if TYPE_CHECKING:
    from sparrowlm.text.tokenizer import Tokenizer

THINK_OPENS, THINK_CLOSES = "<think>", "</think>"
CALL_OPENS, CALL_CLOSES = "<tool_call>", "</tool_call>"
TAGS = (THINK_OPENS, THINK_CLOSES, CALL_OPENS, CALL_CLOSES)
_CALL = re.compile(re.escape(CALL_OPENS) + r"(.*?)" + re.escape(CALL_CLOSES), re.DOTALL)


class Fragment(NamedTuple):
    """A stretch of an answer."""

    kind: Literal["thinking", "content", "tool_call"]
    text: str
    """Never empty. Of a tool call the whole JSON between its tags."""


class ReplySplitter:
    r"""From text that comes in pieces to its parts.

    Where pieces are cut makes no difference to what the fragments of one kind are, joined. Line
    ends that the template writes around its tags belong to no fragment; half a tag is held back
    until it is one or none. An answer that `ChatFormat` writes comes back as it was.

    Args:
        thinking: the prompt ended inside of a thought: `<think>` is already open.

    >>> splitter = ReplySplitter()
    >>> splitter.push("<think>\nsmall?\n</thi")
    [Fragment(kind='thinking', text='small?')]
    >>> splitter.push("nk>\n\nYes.") + splitter.finish()
    [Fragment(kind='content', text='Yes.')]
    """

    def __init__(self, *, thinking: bool = False) -> None:
        self._state: Literal["start", "thinking", "content", "call"] = (
            "thinking" if thinking else "start"
        )
        self._held = ""
        self._searched = 0  # characters of `held` in which no closing tag begins
        self._begun = False  # the thought, or what is said, has a first character
        self._called = False  # nothing but white space came since the last call
        self._before_call = ""  # what an unfinished call would give back in front of it

    def push(self, text: str) -> list[Fragment]:
        """What is certain now."""
        self._held += text
        return list(self._fragments(last=False))

    def finish(self) -> list[Fragment]:
        """What is held, at the end of the answer. A call that was not closed is content, as it was
        written."""
        return list(self._fragments(last=True))

    def _fragments(self, last: bool) -> Iterator[Fragment]:
        state = None
        while state != self._state:  # a tag leads from one to the next
            state = self._state
            match state:
                case "start":
                    self._start(last)
                case "thinking":
                    yield from self._think(last)
                case "content":
                    yield from self._say(last)
                case "call":
                    yield from self._call(last)

    def _start(self, last: bool) -> None:
        text = self._held.lstrip()
        if text.startswith(THINK_OPENS):
            self._held = text.removeprefix(THINK_OPENS)
            self._state = "thinking"
        elif last or not THINK_OPENS.startswith(text):
            self._state = "content"

    def _think(self, last: bool) -> Iterator[Fragment]:
        self._drop_line_ends()
        before, tag, behind = self._held.partition(THINK_CLOSES)
        cut = len(before) if tag or last else len(before) - overlap(before, THINK_CLOSES)
        text = before[:cut].rstrip("\n")
        self._held = self._held[len(text) :]
        if text:
            self._begun = True
            yield Fragment("thinking", text)
        if tag:
            self._held, self._state, self._begun = behind, "content", False
        elif last:
            self._held = ""

    def _say(self, last: bool) -> Iterator[Fragment]:
        self._drop_line_ends()
        before, tag, behind = self._held.partition(CALL_OPENS)
        cut = len(before) if tag or last else len(before) - overlap(before, CALL_OPENS)
        text = before[:cut]
        if self._called and not text.strip():
            text = ""  # between calls, or behind the last
        elif not last or tag:
            text = text.removesuffix("\n")  # the template's, if a call follows
        if text:
            self._begun, self._called = True, False
            self._held = self._held[len(text) :]
            yield Fragment("content", text)
        if tag:
            self._before_call = before[len(text) :] + CALL_OPENS
            self._held, self._state, self._searched = behind, "call", 0
        elif last:
            self._held = ""

    def _call(self, last: bool) -> Iterator[Fragment]:
        at = self._held.find(CALL_CLOSES, self._searched)
        if at >= 0:
            call, self._held = self._held[:at].strip(), self._held[at + len(CALL_CLOSES) :]
            self._state, self._called = "content", True
            if call:
                yield Fragment("tool_call", call)
        elif last:
            text, self._held = self._before_call + self._held, ""
            yield Fragment("content", text)
        else:
            self._searched = max(0, len(self._held) - len(CALL_CLOSES) + 1)

    def _drop_line_ends(self) -> None:
        """Those at the beginning of a thought or of what is said."""
        if not self._begun:
            self._held = self._held.lstrip("\n")


class ReplyReader:
    """From an engine's pieces to the parts of an answer. Where tags are special tokens, which an
    engine leaves out of its text, they are put in by their ids.

    Args:
        tokenizer: of the model.
        prompt: the ids that the answer is written behind; their end says whether a thought is open.

    >>> reader = ReplyReader(tokenizer, request.prompt)
    >>> parts = [part for piece in engine.stream([request])
    ...          for part in reader.push(piece.token, piece.text)] + reader.finish()
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        specials = tokenizer.special_ids
        self._tags = {specials[tag]: tag for tag in TAGS if tag in specials}
        end = tokenizer.decode(list(prompt)[-16:], specials=True)
        self._splitter = ReplySplitter(thinking=end.rstrip().endswith(THINK_OPENS))

    def push(self, token: int, text: str) -> list[Fragment]:
        """What is certain now.

        Args:
            token: as drawn.
            text: that may be shown with it.
        """
        return self._splitter.push(text + self._tags.get(token, ""))

    def finish(self) -> list[Fragment]:
        """What is held, at the end of the answer."""
        return self._splitter.finish()


def message_from(fragments: Iterable[Fragment]) -> Message:
    """An assistant's message of the parts of an answer. What was marked as a call and is none
    stays as it was written, in the content.

    >>> message_from([Fragment("thinking", "hm"), Fragment("content", "Yes.")])
    {'role': 'assistant', 'content': 'Yes.', 'reasoning_content': 'hm'}
    """
    said, thought, calls = "", "", []
    for kind, text in fragments:
        match kind:
            case "thinking":
                thought += text
            case "content":
                said += text
            case "tool_call":
                if (call := parse_tool_call(text)) is not None:
                    calls.append({"name": call[0], "arguments": call[1]})
                else:
                    said += "\n" * bool(said) + f"{CALL_OPENS}\n{text}\n{CALL_CLOSES}"
    message: Message = {"role": "assistant", "content": said}
    message |= {"reasoning_content": thought} if thought else {}
    return message | ({"tool_calls": calls} if calls else {})


def tool_calls(text: str) -> list[str]:
    """What stands between the tags of every call in a whole text.

    >>> tool_calls('<tool_call>{"name": "now"}</tool_call>')
    ['{"name": "now"}']
    """
    return _CALL.findall(text)


def parse_tool_call(text: str) -> tuple[str, str] | None:
    """The name of a called tool and its arguments as JSON in a string; None where the text is no
    call. Arguments that a model wrote as a string are that string.

    >>> parse_tool_call('{"name": "add", "arguments": {"a": 1}}')
    ('add', '{"a": 1}')
    """
    try:
        call = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
        return None
    name, arguments = call["name"], call.get("arguments", {})
    written = arguments if isinstance(arguments, str) else dump(arguments)
    return (name, written) if is_text(name + written) else None


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
