"""A client's connection, with the bounds that uvicorn leaves open."""

from __future__ import annotations

import asyncio
import json

from uvicorn.protocols.http.h11_impl import H11Protocol

from sparrowlm.share.server.faults import ApiFault
from sparrowlm.share.server.limits import Limits


def protocol_of(limits: Limits) -> type[H11Protocol]:
    """The protocol that a server speaks under its limits."""

    class Connection(BoundedConnection):
        bounds = limits

    return Connection


class BoundedConnection(H11Protocol):
    """Closed where headers do not come, where a reader takes nothing, and where there are too many.

    uvicorn's own bound on concurrency counts requests; these count and time connections, which
    cost a file descriptor even while they say nothing.
    """

    bounds = Limits()
    _silence: asyncio.TimerHandle | None = None  # until the headers of a request are there
    _stall: asyncio.TimerHandle | None = None  # until a reader takes something

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """One more, or one too many."""
        super().connection_made(transport)
        if len(self.connections) > self.bounds.connections:
            fault = ApiFault(
                503,
                f"there are {self.bounds.connections} connections already",
                code="too_many_connections",
                retry_after=self.bounds.retry_seconds,
            )
            transport.write(_plain(fault))
            transport.close()
        else:
            self._expect()

    def data_received(self, data: bytes) -> None:
        """Part of a request."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._expect()

    def on_response_complete(self) -> None:
        """Nothing is under way. uvicorn's own timer ends what stays silent; a request of which a
        part is here already has no more time than any other."""
        super().on_response_complete()
        if self.conn.trailing_data[0]:
            self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._silence = _cancelled(self._silence)
        self._stall = _cancelled(self._stall)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The reader is behind by more than a buffer."""
        super().pause_writing()
        stall = self.bounds.stall_seconds
        self._stall = self._stall or self.loop.call_later(stall, self.transport.abort)

    def resume_writing(self) -> None:
        """It has caught up."""
        self._stall = _cancelled(self._stall)
        super().resume_writing()

    def _expect(self) -> None:
        """Wait for headers so long and no longer, unless a request is being answered."""
        busy = self.cycle is not None and not self.cycle.response_complete
        if busy or self.transport.is_closing():
            self._silence = _cancelled(self._silence)
        elif self._silence is None:
            self._silence = self.loop.call_later(self.bounds.head_seconds, self.transport.close)


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def _plain(fault: ApiFault) -> bytes:
    """A fault as HTTP, where no request was read that it could answer."""
    body = json.dumps(fault.body).encode()
    headers = {"Content-Type": "application/json", "Connection": "close", **fault.headers}
    lines = [f"{name}: {value}" for name, value in headers.items()]
    head = [f"HTTP/1.1 {fault.status} Service Unavailable", *lines, f"Content-Length: {len(body)}"]
    return "\r\n".join([*head, "", ""]).encode() + body
