"""Answers that take their time: a stream of events, or one that is waited for; either ends at once
when its reader leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Result = TypeVar("Result")

DONE = b"data: [DONE]\n\n"


def event(told: BaseModel | dict[str, Any]) -> bytes:
    """One server-sent event. Everything beyond ASCII is escaped: some readers take U+2028 and its
    like for line ends."""
    fields = told.model_dump(exclude_unset=True) if isinstance(told, BaseModel) else told
    return b"data: " + json.dumps(fields).encode("ascii") + b"\n\n"


class EventStream(Response):
    """Events as they come.

    Args:
        events: ready to be sent.
        close: called once, however the stream ends.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], None]) -> None:
        super().__init__(headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._close = events, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}

        async def write() -> None:
            await send(start)
            async for content in self._events:
                await send({"type": "http.response.body", "body": content, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        try:
            await while_there(receive, write())
        finally:
            self._close()


async def while_there(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result | None:
    """Do something for as long as a client is there.

    Returns:
        The result, or None where the client has left.
    """
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return doing.result() if doing.done() else None
    finally:
        for task in (doing, leaving):
            task.cancel()
        await asyncio.gather(doing, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
