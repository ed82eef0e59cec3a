"""A server as a process: its socket, its signals, its end."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from types import FrameType

import uvicorn

from sparrowlm.errors import ConfigError, EnvironmentFault
from sparrowlm.share.server.app import make_app
from sparrowlm.share.server.connection import protocol_of
from sparrowlm.share.server.gates import LOCAL, Rules, is_loopback
from sparrowlm.share.server.limits import Limits
from sparrowlm.share.server.service import Served, Service

LAST_BYTES = 5
"""Seconds that answers which are written have to reach their readers."""


def rules_for(
    host: str,
    *,
    key: str | None = None,
    open_to_all: bool = False,
    names: Sequence[str] = (),
    origins: Sequence[str] = (),
) -> Rules:
    """Who may ask a server that listens on `host`.

    Args:
        host: an address or a name of this machine.
        key: that requests must bring.
        open_to_all: no key is meant, though others can reach the address.
        names: under which it may be addressed besides.
        origins: of pages that may ask.

    Raises:
        ConfigError: others could reach it and there is no key; or an origin that is none.

    >>> rules_for("127.0.0.1").key is None
    True
    """
    own = f"[{host}]" if ":" in host else host.lower()
    if not (own in LOCAL or is_loopback(own)) and key is None and not open_to_all:
        raise ConfigError(
            f"{host} can be reached by others, and there is no key",
            where="--host",
            why="anyone there could use the model, and see what it answers",
            fix="add --api-key KEY, or --insecure-no-auth if that is meant",
        )
    for origin in origins:
        scheme, mark, rest = origin.partition("://")
        if origin != "*" and (
            scheme not in ("http", "https") or not mark or not rest or "/" in rest
        ):
            raise ConfigError(
                f"{origin!r} is no origin",
                where="--cors",
                fix="write scheme, name and port as a browser does, such as http://localhost:3000",
            )
    everywhere = host in ("0.0.0.0", "::")
    known = LOCAL | {own} | {name.lower() for name in names}
    return Rules(frozenset(known), everywhere, key, tuple(origins))


def listen(host: str, port: int) -> socket.socket:
    """A socket that waits for clients.

    Args:
        host: an address or a name of this machine.
        port: 0 takes any that is free.

    Raises:
        EnvironmentFault: the port is taken, or the address is none of this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as fault:
        raise EnvironmentFault(
            f"cannot listen there: {fault}",
            where=f"{host}:{port}",
            fix="stop what listens there, or choose another --port; --port 0 takes any",
        ) from fault


class Server(uvicorn.Server):
    """One that finishes what it has begun: on the first SIGTERM or Ctrl-C it refuses new requests
    and waits, on the second it stops at once.

    Args:
        models: by their names; the first is the run.
        rules: who may ask.
        limits: how much.
        slots: completions of one model under way at once.
        ready: called when clients are answered.
    """

    def __init__(
        self,
        models: Sequence[Served],
        rules: Rules,
        limits: Limits,
        slots: int | None = None,
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        self.service, self._ready = Service(models, limits, slots), ready
        self._deadline = 0.0
        super().__init__(
            uvicorn.Config(
                make_app(self.service, rules),
                http=protocol_of(limits),
                ws="none",
                loop="asyncio",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                h11_max_incomplete_event_size=limits.head_bytes,
                timeout_keep_alive=limits.idle_seconds,
                timeout_graceful_shutdown=2 * LAST_BYTES,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal to stop."""
        if self.service.draining:
            self.should_exit = self.force_exit = True
        self.service.draining = True
        self._deadline = time.monotonic() + self.service.limits.drain_seconds

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; True ends the loop."""
        if self.service.draining and not self.should_exit:
            late = time.monotonic() > self._deadline
            if late:
                self.service.abort("the server has stopped before the answer was whole")
            self.should_exit = late or not self.service.under_way
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let the last bytes out, but wait for no reader that takes nothing."""
        cut = asyncio.get_running_loop().call_later(LAST_BYTES, self._cut)
        await super().shutdown(sockets)
        cut.cancel()

    def _cut(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    def answer(self, waiting: socket.socket) -> None:
        """Serve until a signal, or until `should_exit` is set."""
        try:
            self.run(sockets=[waiting])
        finally:
            self.service.stop()
