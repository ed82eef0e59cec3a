"""A hub on this machine: the endpoints that the hubs' own clients call for datasets."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c" * 40
CARD = {"configs": [{"config_name": "poems", "data_files": [{"split": "train", "path": "p/*"}]}]}


class Hub:
    """A hub with one repository, `owner/name`.

    Args:
        files: content by name.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.refusals: dict[str, tuple[int, str]] = {}  # repository: status, error code
        self.asked: list[str] = []
        self.address = ""

    def answer(self, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        address = urlsplit(path)
        place, query = unquote(address.path), parse_qs(address.query)
        self.asked.append(f"{method} {place}")
        for repository, (status, code) in self.refusals.items():
            if repository in place:
                return status, {"X-Error-Code": code, "X-Error-Message": code}, b"{}"
        if "owner/name" not in place:
            return 404, {"X-Error-Code": "RepoNotFound"}, b'{"Code": 404, "Message": "no such"}'
        if place.startswith("/api/v1/datasets/"):
            return self._modelscope(place, query)
        if "/tree/" in place:
            return 200, {}, json.dumps([self._entry(name) for name in self.files]).encode()
        if place.startswith("/api/datasets/"):
            told = {"id": "owner/name", "sha": COMMIT, "cardData": CARD, "siblings": []}
            return 200, {}, json.dumps(told | {"private": False, "tags": []}).encode()
        name = unquote(address.path.partition("/resolve/")[2].partition("/")[2])
        if name not in self.files:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b""
        return 200, self._tags(name) | {"X-Repo-Commit": COMMIT}, self.files[name]

    def _modelscope(self, place: str, query: dict[str, list[str]]) -> tuple[int, dict, bytes]:
        if place.endswith("/repo/tree"):
            entries = [
                {"Path": name, "Name": name, "Type": "blob", "Size": len(content)}
                | {"Sha256": hashlib.sha256(content).hexdigest()}
                for name, content in self.files.items()
            ]
            first = query.get("PageNumber", ["1"]) == ["1"]
            data = {"Files": entries if first else [], "TotalCount": len(entries)}
            told = {"Code": 200, "Success": True, "Data": data, "TotalCount": len(entries)}
            return 200, {}, json.dumps(told).encode()
        name = query.get("FilePath", [""])[0]
        if name in self.files:
            return 200, self._tags(name), self.files[name]
        told = {"Code": 200, "Success": True, "Data": {"Id": 1, "Type": 1, "Name": "name"}}
        return (404, {}, b"{}") if name else (200, {}, json.dumps(told).encode())

    def _entry(self, name: str) -> dict[str, object]:
        oid = hashlib.sha1(self.files[name]).hexdigest()
        return {"type": "file", "path": name, "size": len(self.files[name]), "oid": oid}

    def _tags(self, name: str) -> dict[str, str]:
        return {"ETag": f'"{hashlib.sha1(self.files[name]).hexdigest()}"'}


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Answer on a free port of this machine until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = hub.answer(self.command, self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
