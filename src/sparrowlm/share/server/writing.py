"""One client's answer: several completions, streamed or whole."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from importlib.metadata import version
from typing import Any, Protocol

from pydantic import BaseModel

from sparrowlm.infer.engine import Piece, Request
from sparrowlm.share.server.faults import ApiFault
from sparrowlm.share.server.responses import (
    ChatChunk,
    ChatCompletion,
    Completion,
    Usage,
)
from sparrowlm.share.server.service import Served, Ticket
from sparrowlm.share.server.streaming import DONE, event


class Row(Protocol):
    """`answers.ChatRow` or `TextRow`: one completion as it comes."""

    index: int

    def begin(self) -> Iterable[Any]:
        """The choices of chunks that stand before the first token."""
        ...

    def push(self, piece: Piece) -> Iterable[Any]:
        """Those that a piece makes."""
        ...

    def whole(self, parts: Sequence[Any]) -> Any:
        """The choice of a whole answer that they add up to."""
        ...


class Answer:
    """What one request gets.

    Args:
        ticket: of its completions.
        asked: of the engine.
        rows: one for each.
        model: that writes.
        with_usage: a stream ends with the token counts.
    """

    prefix: str
    chunk: type[BaseModel]
    complete: type[BaseModel]

    def __init__(
        self,
        ticket: Ticket,
        asked: Sequence[Request],
        rows: Sequence[Row],
        model: Served,
        with_usage: bool,
    ) -> None:
        self._ticket, self._rows, self._with_usage = ticket, rows, with_usage
        # A prompt is counted once, however many completions it has.
        self._read = sum(len(one.prompt) for one in asked if not one.sample)
        self._written = 0
        self._head = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model.name,
            "system_fingerprint": f"sparrow-{version('sparrowlm')}-step-{model.step}",
        }

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events. What goes wrong on the way is the last of them."""
        nothing = {"usage": None} if self._with_usage else {}
        try:
            async for choice in self._choices():
                yield event(self.chunk(**self._head, choices=[choice], **nothing))
        except ApiFault as fault:
            yield event(fault.body)
            return
        if self._with_usage:
            yield event(self.chunk(**self._head, choices=[], usage=self._usage()))
        yield DONE

    async def whole(self) -> BaseModel:
        """All of it at once.

        Raises:
            ApiFault: the engine failed.
        """
        parts: list[list[Any]] = [[] for _ in self._rows]
        async for choice in self._choices():
            parts[choice.index].append(choice)
        choices = [row.whole(own) for row, own in zip(self._rows, parts, strict=True)]
        return self.complete(**self._head, choices=choices, usage=self._usage())

    async def _choices(self) -> AsyncIterator[Any]:
        for row in self._rows:
            for choice in row.begin():
                yield choice
        async for place, piece in self._ticket.pieces():
            self._written += 1
            for choice in self._rows[place].push(piece):
                yield choice

    def _usage(self) -> Usage:
        total = self._read + self._written
        return Usage(prompt_tokens=self._read, completion_tokens=self._written, total_tokens=total)


class ChatAnswer(Answer):
    """Of `/v1/chat/completions`."""

    prefix, chunk, complete = "chatcmpl", ChatChunk, ChatCompletion


class TextAnswer(Answer):
    """Of `/v1/completions`; a chunk has the form of the whole."""

    prefix, chunk, complete = "cmpl", Completion, Completion
