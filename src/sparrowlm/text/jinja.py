"""Somebody else's chat template: rendered in a sandbox, and told apart into prompt and answer.

A Jinja template is a program that came with a file. It runs in Jinja's immutable sandbox, in which
it reaches nothing but its arguments. What it renders is taken apart by rendering beginnings of the
conversation: each, with the generation prompt, has to be a prefix of the next; what follows it, up
to the end token, is the assistant's. A conversation where that does not hold is refused.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sparrowlm.errors import DataError, TokenizerError
from sparrowlm.text.chat import Part, parts_of, prompt_part
from sparrowlm.text.turns import Message, dump

if TYPE_CHECKING:
    from sparrowlm.text.tokenizer import Tokenizer

PRIVATE = range(0xE000, 0xF900)
"""Characters that mean nothing by themselves."""


class ForeignTemplate:
    """The template of a tokenizer that others made.

    Args:
        tokenizer: with a `chat_template`.
        chatml: whether it has the special tokens of ours.

    Raises:
        TokenizerError: it is not a template.
    """

    def __init__(self, tokenizer: Tokenizer, chatml: bool) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols"],  # as transformers reads one
        )
        environment.filters["tojson"] = lambda value, *_, **__: dump(value)
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        try:
            self._template = environment.from_string(tokenizer.chat_template or "")
        except TemplateError as fault:
            raise TokenizerError(
                f"its chat template cannot be read: {fault}",
                fix="mend chat_template in tokenizer_config.json",
            ) from fault
        self._names = tokenizer.special_names
        specials = sorted(tokenizer.special_ids, key=len, reverse=True)
        self._specials = re.compile("|".join(map(re.escape, specials)) or r"(?!)")
        self._edges = sorted({name[at] for name in specials if name for at in (0, -1)})
        self.like_ours = chatml and self._prompts_alike()

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] = (),
        prompt: bool = False,
        thinking: bool = False,
    ) -> str:
        """The text of a conversation, perhaps with what an answer begins with.

        Raises:
            DataError: the template refuses it.
        """
        try:
            return self._template.render(
                messages=list(messages),
                tools=list(tools) or None,
                documents=None,
                add_generation_prompt=prompt,
                enable_thinking=thinking,
                open_thinking=thinking,
                **self._names,
            )
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as fault:
            raise DataError(f"the chat template refuses it: {fault}") from fault

    def parts(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] = (),
        prompt: bool = False,
        thinking: bool = False,
    ) -> list[Part]:
        """The pieces of what is rendered; those of our own template where it is the same text.

        Raises:
            DataError: it is refused, or which part is the assistant's cannot be told.
        """
        text = self.render(messages, tools, prompt, thinking)
        if self.like_ours:
            own = [*parts_of(messages, tools), *([prompt_part(thinking)] if prompt else [])]
            if "".join(part.text for part in own) == text:
                return own
        return self._derived(text, messages, tools, prompt, thinking)

    def _derived(
        self,
        text: str,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]],
        prompt: bool,
        thinking: bool,
    ) -> list[Part]:
        """Pieces from renderings alone.

        In these, the first and last characters of special tokens are others wherever a person or
        a model wrote them, so every special token that is found is the template's own.
        """
        unused = (chr(code) for code in PRIVATE if chr(code) not in text)
        there = {ord(edge): next(unused) for edge in self._edges if edge not in "\n"}
        back = {ord(other): chr(edge) for edge, other in there.items()}
        hidden = [self._translated(message, there) for message in messages]
        signatures = [self._translated(tool, there) for tool in tools]
        shown = self.render(hidden, signatures, prompt, thinking)
        if shown.translate(back) != text:
            raise DataError(
                "which part of a conversation is the template's own cannot be told",
                why="the template changes what it is given, beyond white space at its ends",
            )
        borders = [
            (*self._answer(hidden, number, signatures, shown), number)
            for number, message in enumerate(messages)
            if message["role"] == "assistant"
        ]
        found, at = [], 0
        for first, last, number in borders:
            found += self._pieces(shown, text, at, first, -1)
            found += self._pieces(shown, text, first, last, number)
            at = last
        return found + self._pieces(shown, text, at, len(text), -1)

    def _answer(
        self,
        messages: list[Message],
        number: int,
        tools: list[dict[str, Any]],
        shown: str,
    ) -> tuple[int, int]:
        """Where the answer of a message begins and ends in what is shown."""
        until = self.render(messages[: number + 1], tools)
        thinks = bool(messages[number].get("reasoning_content"))
        for thinking in (thinks, not thinks):
            before = self.render(messages[:number], tools, prompt=True, thinking=thinking)
            if until.startswith(before) and shown.startswith(until):
                break
        else:
            raise DataError(
                f"where the answer of message {number + 1} begins cannot be told",
                why="the template writes a turn otherwise once more turns follow, or its generation"
                " prompt is not how it begins an answer",
                fix="use a tokenizer whose template only appends, or one answer a conversation",
            )
        ends = [mark.end() for mark in self._specials.finditer(until, len(before))]
        if not ends or until[ends[-1] :].strip():
            raise DataError(
                f"message {number + 1} has no end token behind its answer",
                why="a model that never learns to end does not stop",
            )
        return len(before), ends[-1]

    def _pieces(self, shown: str, text: str, first: int, last: int, author: int) -> list[Part]:
        """A stretch, its special tokens apart."""
        found, at = [], first
        for mark in self._specials.finditer(shown, first, last):
            found.append(Part(text[at : mark.start()], False, author))
            found.append(Part(mark[0], True, author))
            at = mark.end()
        return [*found, Part(text[at:last], False, author)]

    def _translated(self, value: Any, there: dict[int, str], key: str = "") -> Any:
        """The value with other characters in every string but a role."""
        match value:
            case str():
                return value if key == "role" else value.translate(there)
            case dict():
                if any(self._specials.search(name) for name in value):
                    raise DataError("a key in tools or tool_calls has the name of a special token")
                return {name: self._translated(one, there, name) for name, one in value.items()}
            case list() | tuple():
                return [self._translated(one, there) for one in value]
            case _:
                return value

    def _prompts_alike(self) -> bool:
        """Whether an answer begins as with our template."""
        turn = [{"role": "user", "content": "a"}]
        try:
            return all(
                self.render(turn, prompt=True, thinking=thinking)
                == "".join(part.text for part in [*parts_of(turn), prompt_part(thinking)])
                for thinking in (False, True)
            )
        except DataError:
            return False


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)
