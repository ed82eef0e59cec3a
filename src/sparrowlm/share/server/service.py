"""The models in a thread of their own, and the way between it and asyncio.

    asyncio                                  the engine's thread
    Service.open(requests)  ── commands ──>  session.submit, cancel
    Ticket.pieces()         <── a batch ──   session.round, over and over

A thread runs the models because a round holds it for as long as it takes, which would keep the
event loop from everything else. Each round's pieces come over in one call.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import NamedTuple

from sparrowlm.errors import SparrowError
from sparrowlm.infer.engine import Engine, Piece, Request
from sparrowlm.share.server.faults import ApiFault, fault_of
from sparrowlm.share.server.limits import Limits
from sparrowlm.share.server.metrics import Metrics
from sparrowlm.text.chat import ChatFormat
from sparrowlm.text.tokenizer import Tokenizer

LOG = logging.getLogger(__name__)


class Served(NamedTuple):
    """A model under a name of its own."""

    name: str
    engine: Engine
    """One that does not slide."""
    chat: ChatFormat | None
    """None: a base model, which continues text and was never taught turns."""
    parent: str | None = None
    """The model that this is with an adapter's changes."""
    parameters: int = 0
    step: int = 0

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the engine."""
        assert self.engine.tokenizer is not None, "a run without one is not loaded"
        return self.engine.tokenizer


class Ticket:
    """The completions of one client's request. Lives in asyncio; the engine's thread only hands
    it on.

    Args:
        name: of the model.
        count: of completions.
        most: pieces that may wait for the reader.
    """

    def __init__(self, name: str, count: int, most: int, left: Callable[[Ticket], None]) -> None:
        self.name, self.open = name, set(range(count))
        self.rows: dict[int, int] = {}  # the session's number -> the place; of the thread alone
        self._waiting: asyncio.Queue[tuple[int, Piece] | ApiFault] = asyncio.Queue()
        self._most, self._left = most, left
        self._began = time.perf_counter()
        self._last = [self._began] * count

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Each piece with the place of its completion, until all have ended.

        Raises:
            ApiFault: the engine failed, or the server stops.
        """
        ended = 0
        while ended < len(self._last):
            found = await self._waiting.get()
            if isinstance(found, ApiFault):
                raise found
            ended += bool(found[1].end)
            yield found

    def take(self, place: int, piece: Piece, metrics: Metrics) -> None:
        """One more piece, from the engine's thread by way of the loop."""
        if place not in self.open:
            return  # it was given up meanwhile
        now = time.perf_counter()
        first = self._last[place] == self._began
        (metrics.first if first else metrics.between).observe(now - self._last[place])
        self._last[place] = now
        if self._waiting.qsize() >= self._most:
            self.fail(ApiFault(503, "the stream is read too slowly", code="slow_reader"))
            return
        self._waiting.put_nowait((place, piece))
        if piece.end:
            self.open.discard(place)
            if not self.open:
                self._left(self)

    def fail(self, fault: ApiFault) -> None:
        """End all of it with a fault that the reader meets behind what is written already."""
        self._waiting.put_nowait(fault)
        self.close()

    def close(self) -> None:
        """Give up what has not ended; its slots are free at the next round."""
        if self.open:
            self.open.clear()
            self._left(self)


class _Submit(NamedTuple):
    ticket: Ticket
    requests: Sequence[Request]
    accepted: asyncio.Future[None]


class _Cancel(NamedTuple):
    ticket: Ticket


class Service:
    """Everything that writes, behind one door.

    Args:
        models: by name; the first is what a request gets that names none.
        limits: of the queue and of readers.
        slots: completions of one model under way at once; None: as many as its engine has.
    """

    def __init__(self, models: Sequence[Served], limits: Limits, slots: int | None = None) -> None:
        self.models = {model.name: model for model in models}
        self.limits, self.draining, self.failed = limits, False, False
        self.created = int(time.time())
        self._slots = slots
        self._sessions = {
            name: model.engine.session(slots=slots) for name, model in self.models.items()
        }
        self.slots = sum(session.slots for session in self._sessions.values())
        self.metrics = Metrics(self)
        self._commands: queue.SimpleQueue[_Submit | _Cancel | None] = queue.SimpleQueue()
        self._owners: dict[tuple[str, int], tuple[Ticket, int]] = {}  # of the thread alone
        self._tickets: dict[Ticket, int] = {}  # of the loop alone: how many completions each holds
        self._thread = threading.Thread(target=self._run, name="sparrow-engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def active(self) -> int:
        """Completions that hold a slot."""
        return sum(session.active for session in self._sessions.values())

    @property
    def waiting(self) -> int:
        """Completions that wait for one."""
        return sum(session.waiting for session in self._sessions.values())

    @property
    def under_way(self) -> int:
        """Completions that were accepted and have not ended, as clients see it."""
        return sum(self._tickets.values())

    def start(self) -> None:
        """Begin; called from the loop that will be told of the pieces."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """End the thread, after the round it is in; a second time does nothing."""
        self.abort("the server stops")
        self._commands.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def abort(self, why: str) -> None:
        """End everything that is under way."""
        for ticket in list(self._tickets):
            ticket.fail(ApiFault(503, why, code="stopped", retry_after=self.limits.retry_seconds))

    async def open(self, model: Served, requests: Sequence[Request]) -> Ticket:
        """Submit the completions that one client asked for, all or none.

        Raises:
            ApiFault: 400 where they could never run, 429 where the queue is full, 503 where the
                server stops or its engine has failed.
        """
        self._check_room(len(requests))
        ticket = Ticket(model.name, len(requests), self.limits.pieces, self._forget)
        self._tickets[ticket] = len(requests)
        accepted = asyncio.get_running_loop().create_future()
        self._commands.put(_Submit(ticket, requests, accepted))
        try:
            await accepted
        except BaseException:  # a client that left meanwhile too: nothing of it may stay
            ticket.close()
            raise
        self.metrics.read.labels(model.name).inc(
            sum(len(one.prompt) for one in requests if not one.sample)
        )
        return ticket

    def _check_room(self, count: int) -> None:
        self._check_health()
        own = self.slots // len(self.models)
        if count > own + self.limits.queue:
            raise ApiFault(
                400,
                f"{count} completions were asked for at once, and there is room for"
                f" {own + self.limits.queue}: ask for fewer prompts, or a smaller n",
                param="n",
                code="too_many_completions",
            )
        if self.under_way + count > self.slots + self.limits.queue:
            raise ApiFault(
                429,
                f"the queue is full: {self.under_way} completions are under way or wait",
                code="queue_full",
                retry_after=self.limits.retry_seconds,
            )

    def _check_health(self) -> None:
        if self.failed:
            raise ApiFault(503, "the engine has failed; see the server's log", code="failed")

    def _forget(self, ticket: Ticket) -> None:
        """A ticket is done with, by its end or by its reader's."""
        if self._tickets.pop(ticket, None) is not None:
            self._commands.put(_Cancel(ticket))  # rows that have ended are ignored there

    def _deliver(self, batch: list[tuple[Ticket, int, Piece]]) -> None:
        for ticket, place, piece in batch:
            self.metrics.written.labels(ticket.name).inc()
            ticket.take(place, piece, self.metrics)

    def _tell(self, call: Callable[..., object], *told: object) -> None:
        """Call something in the loop."""
        assert self._loop is not None, "set before the thread starts"
        self._loop.call_soon_threadsafe(call, *told)

    # What follows runs in the engine's thread.

    def _run(self) -> None:
        while True:
            sessions = {} if self.failed else self._sessions
            busy = [name for name, session in sessions.items() if session.busy]
            if not self._obey(wait=not busy):
                return
            for name in busy:
                self._round(name)

    def _obey(self, wait: bool) -> bool:
        """Do what was asked since the last round; False at the end."""
        while wait or not self._commands.empty():
            command, wait = self._commands.get(), False
            match command:
                case None:
                    return False
                case _Submit(ticket, requests, accepted):
                    self._submit(ticket, requests, accepted)
                case _Cancel(ticket):
                    for row in ticket.rows:
                        self._sessions[ticket.name].cancel(row)
                        self._owners.pop((ticket.name, row), None)
        return True

    def _submit(
        self, ticket: Ticket, requests: Sequence[Request], accepted: asyncio.Future[None]
    ) -> None:
        session = self._sessions[ticket.name]
        try:
            self._check_health()
            for place, request in enumerate(requests):
                row = session.submit(request)
                ticket.rows[row] = place
                self._owners[ticket.name, row] = ticket, place
        except Exception as fault:  # the ticket's end cancels those before it
            self._tell(_settle, accepted, _told_of(ticket.name, fault))
            return
        self._tell(_settle, accepted, None)

    def _round(self, name: str) -> None:
        try:
            pieces = self._sessions[name].round()
        except Exception as fault:  # whatever it is, clients are told and the next ones served
            self._recover(name, fault)
            return
        batch = [
            (*self._owners[name, piece.row], piece)
            for piece in pieces
            if (name, piece.row) in self._owners
        ]
        for piece in pieces:
            if piece.end:
                self._owners.pop((name, piece.row), None)
        if batch:
            self._tell(self._deliver, batch)

    def _recover(self, name: str, fault: Exception) -> None:
        """Tell those under way of a fault, and begin with an empty session."""
        told = ApiFault(500, _told_of(name, fault).message, code="engine_fault")
        mine = {ticket for (own, _), (ticket, _) in self._owners.items() if own == name}
        self._owners = {at: one for at, one in self._owners.items() if at[0] != name}
        for ticket in mine:
            ticket.rows = {}  # the numbers of the next session are others'
            self._tell(ticket.fail, told)
        try:
            self._sessions[name] = self.models[name].engine.session(slots=self._slots)
        except Exception as again:
            LOG.error("the engine of %s could not begin anew", name, exc_info=again)
            self.failed = True
            for ticket in {ticket for ticket, _ in self._owners.values()}:
                self._tell(ticket.fail, told)


def _told_of(name: str, fault: Exception) -> ApiFault:
    """What a client is told of a fault; what is not ours to explain goes to the log."""
    match fault:
        case ApiFault():
            return fault
        case SparrowError():
            return fault_of(fault)
    LOG.error("the engine of %s failed", name, exc_info=fault)
    return ApiFault(500, "the engine failed; see the server's log", code="engine_fault")


def _settle(future: asyncio.Future[None], fault: ApiFault | None) -> None:
    """Say how a submission went, unless nobody waits for it any more."""
    if future.done():
        return
    if fault is None:
        future.set_result(None)
    else:
        future.set_exception(fault)
