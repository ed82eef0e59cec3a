"""What every request passes before a route sees it: who may ask, from where, and how much.

From the outside in: `Watched` counts and adds headers, `Hosted` looks at where the request comes
from, CORS answers browsers where it is switched on, `Keyed` asks for the key, `Bounded` reads the
body.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sparrowlm.share.server.faults import ApiFault
from sparrowlm.share.server.limits import Limits

LOCAL = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""The names of this machine for itself."""

SAFE = {
    # The page is plain files of ours; nothing may be loaded from anywhere else, or frame it.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; object-src 'none';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Headers of every answer that does not have its own."""


class Rules(NamedTuple):
    """Who may ask."""

    hosts: frozenset[str] = LOCAL
    """Names under which this server may be addressed."""
    any_address: bool = False
    """Any IP address too: it listens on all of this machine's."""
    key: str | None = None
    """What `/v1` and `/metrics` ask for."""
    origins: tuple[str, ...] = ()
    """Other sites whose pages may ask; "*" are all."""


def host_of(value: str) -> str:
    """The name in a Host header, without port and case.

    >>> host_of("LocalHost:8000"), host_of("[::1]:8000"), host_of("127.0.0.1")
    ('localhost', '[::1]', '127.0.0.1')
    """
    value = value.strip().lower()
    if value.startswith("["):
        return value.partition("]")[0] + "]"
    return value.partition(":")[0].removesuffix(".")


def is_address(host: str) -> bool:
    """Whether a name is an IP address.

    >>> is_address("192.168.1.5"), is_address("[fe80::1]"), is_address("evil.example")
    (True, True, False)
    """
    return _address(host) is not None


def is_loopback(host: str) -> bool:
    """Whether a name is an address that only this machine reaches.

    >>> is_loopback("127.8.8.8"), is_loopback("127.0.0.1.evil.example"), is_loopback("0.0.0.0")
    (True, False, False)
    """
    found = _address(host)
    return found is not None and found.is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None


def place_fault(headers: Headers, rules: Rules) -> ApiFault | None:
    """What is wrong with where a request comes from.

    A page of a foreign site can let its own name point at 127.0.0.1 (DNS rebinding): its requests
    carry that name, which is none of ours. Without such tricks they carry its origin.
    """
    host = host_of(headers.get("host", ""))
    if host not in rules.hosts and not (rules.any_address and is_address(host)):
        return ApiFault(
            403,
            f"this server is not known as {host[:200]!r}: start it with --allow-host {host[:200]}"
            if host
            else "the request has no Host header",
            code="unknown_host",
        )
    origin = headers.get("origin")
    own = origin is not None and netloc_of(origin) == headers.get("host", "").lower()
    if origin is None or own or "*" in rules.origins or origin in rules.origins:
        return None
    return ApiFault(
        403,
        f"pages of {origin[:200]} may not ask: start the server with --cors {origin[:200]}",
        code="foreign_origin",
    )


def netloc_of(origin: str) -> str:
    """Host and port of an origin; nothing where it is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def key_fault(headers: Headers, key: str) -> ApiFault | None:
    """What is wrong with the key of a request. Digests are compared, in constant time, so neither
    the key's characters nor its length can be felt out."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    # Headers are bytes, which Starlette shows as Latin-1.
    sides = (given.encode("latin-1"), key.encode("utf-8"))
    same = hmac.compare_digest(*(hashlib.sha256(side).digest() for side in sides))
    if scheme.lower() == "bearer" and same:
        return None
    told = "the API key is not the server's" if given else "an API key is needed"
    return ApiFault(401, f"{told}: Authorization: Bearer KEY", code="invalid_api_key")


async def refuse(fault: ApiFault, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with a fault."""
    await JSONResponse(fault.body, fault.status, fault.headers)(scope, receive, send)


class Watched:
    """Tells `done` of every answer's route and status, and adds `SAFE`.

    Args:
        app: within.
        done: called with one of the routes, or "other".
        routes: their paths, with `{name}` where a path goes on with anything.
    """

    def __init__(
        self, app: ASGIApp, done: Callable[[str, int], None], routes: Sequence[str]
    ) -> None:
        self.app, self.done, self.routes = app, done, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 500  # where nothing is sent, it is our mistake, or nobody is there to read

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in SAFE.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, receive, sent)
        finally:
            self.done(self._route(scope["path"]), status)

    def _route(self, path: str) -> str:
        """The route of a path. Others share one name, or a client could make labels without end."""
        whole = (route for route in self.routes if route == path)
        open_ended = (route for route in self.routes if route.endswith("{name}"))
        begun = (one for one in open_ended if path.startswith(one.removesuffix("{name}")))
        return next(whole, None) or next(begun, "other")


class Hosted:
    """Refuses requests under a foreign name or from a foreign page."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self.app, self.rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and (fault := place_fault(Headers(scope=scope), self.rules)):
            await refuse(fault, scope, receive, send)
        else:
            await self.app(scope, receive, send)


class Keyed:
    """Asks for the key, but where there is nothing to protect: `/health` and the page's files."""

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self.app, self.key = app, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        guarded = scope["type"] == "http" and not (
            scope["path"] in ("/", "/health") or scope["path"].startswith("/page/")
        )
        if guarded and self.key and (fault := key_fault(Headers(scope=scope), self.key)):
            await refuse(fault, scope, receive, send)
        else:
            await self.app(scope, receive, send)


class Bounded:
    """Reads the whole body of a request before a route begins, within its bounds."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                body = await self._body(Headers(scope=scope), receive)
        except TimeoutError:
            body = ApiFault(408, "the body did not come in time", code="request_timeout")
        if isinstance(body, ApiFault):
            await refuse(body, scope, receive, send)
        elif body is not None:
            await self.app(scope, _replay(body, receive), send)

    async def _body(self, headers: Headers, receive: Receive) -> bytes | ApiFault | None:
        """None: the client has left."""
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # What a foreign page may send without asking first is never JSON.
            told = f"the body is {kind[:100] or 'of no type'}: send Content-Type: application/json"
            return ApiFault(415, told, code="unsupported_media_type")
        most = self.limits.body_bytes
        if int(headers.get("content-length", "0")) > most:  # the protocol has checked that digits
            return self._too_large()
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > most:
                return self._too_large()
            if not message.get("more_body"):
                return bytes(body)

    def _too_large(self) -> ApiFault:
        most = self.limits.body_bytes
        return ApiFault(413, f"the body is longer than {most:,} bytes", code="body_too_large")


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body first."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
