"""The page and its answers over HTTP, to this machine alone.

The standard library's server does: one person looks at a page of their own machine, nothing is
written, and so `sparrow watch` needs no extra. It listens on 127.0.0.1; a page of another site
that a browser leads here by a name of its own (DNS rebinding) is told apart by the Host header.
"""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files as package_files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from sparrowlm.errors import EnvironmentFault
from sparrowlm.report.watch.watcher import Watcher

HOST, PORT = "127.0.0.1", 8100
LOCAL = ("127.0.0.1", "localhost", "[::1]")
TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
PAGE = (
    "index.html",
    "watch.css",
    "icon.svg",
    "main.js",
    "store.js",
    "panels.js",
    "chart.js",
    "scale.js",
    "views.js",
    "words.js",
)
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

Query = dict[str, str]
Answer = tuple[HTTPStatus, str, bytes]


def open_server(watcher: Watcher, port: int | None = None) -> ThreadingHTTPServer:
    """A server that is bound, and answers once `serve_forever` is called.

    Args:
        watcher: what it tells of.
        port: 0 for any that is free; None for PORT, or any where that is taken.

    Raises:
        EnvironmentFault: the port is taken.
    """

    class Handler(_Handler):
        answer = staticmethod(lambda path: answer(watcher, path))

    try:
        return _Server((HOST, PORT if port is None else port), Handler)
    except OSError as fault:
        taken = fault.errno in (errno.EADDRINUSE, errno.EACCES)
        if taken and port is None:
            return _Server((HOST, 0), Handler)
        raise EnvironmentFault(
            f"cannot listen: {fault.strerror}", where=f"{HOST}:{port}", fix="--port 0 takes any"
        ) from fault


def answer(watcher: Watcher, address: str) -> Answer:
    """What a GET of an address brings: status, type and body."""
    parts = urlsplit(address)
    query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    name = parts.path.removeprefix("/") or "index.html"
    if name in PAGE:
        content = (package_files("sparrowlm.report.watch") / "page" / name).read_bytes()
        return HTTPStatus.OK, TYPES[name.rpartition(".")[2]], content
    ask = ASK.get(parts.path)
    found = ask(watcher, query) if ask else None
    status = HTTPStatus.NOT_FOUND if found is None else HTTPStatus.OK
    content = json.dumps(found, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return status, "application/json", content.encode("utf-8", errors="replace")


ASK: dict[str, Callable[[Watcher, Query], Any]] = {
    "/api/runs": lambda watcher, query: watcher.overview(),
    "/api/series": lambda watcher, query: watcher.series(
        query.get("run", ""), query.get("known", "")
    ),
    "/api/samples": lambda watcher, query: watcher.samples(query.get("run", "")),
    "/api/difference": lambda watcher, query: watcher.difference(
        query.get("a", ""), query.get("b", "")
    ),
}


def is_local(host: str) -> bool:
    """Whether a Host header names this machine, with or without a port.

    >>> is_local("localhost:8100"), is_local("evil.example:8100")
    (True, False)
    """
    name, colon, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
    if not colon:
        name, port = host, ""
    return name.lower() in LOCAL and (not colon or port.isdigit())


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # On Windows this option would let two servers share one port.
    allow_reuse_address = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that leaves in the middle of an answer is no fault."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD; says nothing on the terminal."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "sparrow", ""
    timeout = 60
    answer: Callable[[str], Answer]

    def do_GET(self) -> None:
        """Answer, or refuse a Host that is not this machine."""
        if not is_local(self.headers.get("Host", "")):
            told = b"This page is for 127.0.0.1 and localhost alone.\n"
            self._send(HTTPStatus.FORBIDDEN, "text/plain; charset=utf-8", told)
            return
        self._send(*self.answer(self.path))

    do_HEAD = do_GET

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads along."""
