"""A hub on this machine that takes uploads: the calls that the hubs' own clients make for one."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

TOKEN = "hf_write"
COMMIT = "d" * 40


class Shelf:
    """Repositories by name, each with its visibility and its files.

    Args:
        large: what the hub wants as a separate upload, by the end of its name.
    """

    def __init__(self, *large: str) -> None:
        self.large = large
        self.visible: dict[str, str] = {}
        self.licenses: dict[str, str] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.status = 0  # what every writing call is answered with, instead of being served
        self.address = ""

    def make(self, name: str, visibility: str, license: str = "") -> None:
        """A repository."""
        self.visible[name], self.licenses[name], self.files[name] = visibility, license, {}

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, Any]:
        """Status, and what the body is to be as JSON."""
        place = urlsplit(path).path
        self.asked.append(f"{method} {place}")
        if method == "PUT":
            self.blobs[place.rsplit("/", 1)[1]] = body
            return 200, {}
        told = headers.get("Authorization", "") + headers.get("Cookie", "")
        if place == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if method == "POST" and (self.status or TOKEN not in told):
            status = self.status or 401
            return status, {"error": f"refused with {status}", "Message": f"refused {status}"}
        modelscope = place.startswith(("/api/v1/", "/openapi/"))
        found = self._modelscope(method, place, body) if modelscope else self._hf(place, body)
        return found if found else (404, {"error": "no such thing", "Message": "no such thing"})

    def _hf(self, place: str, body: bytes) -> tuple[int, Any] | None:
        if place == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.visible:
                return 409, {"error": "exists", "url": f"{self.address}/{name}"}
            self.make(name, asked["visibility"])
            return 200, {"url": f"{self.address}/{name}"}
        name = "/".join(place.removeprefix("/api/models").strip("/").split("/")[:2])
        name = name.removesuffix(".git")
        if name not in self.visible:
            return None
        if place == f"/api/models/{name}":
            private = self.visible[name] == "private"
            return 200, {"id": name, "sha": COMMIT, "private": private, "siblings": [], "tags": []}
        if place.startswith(f"/api/models/{name}/preupload/"):
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(self.large) else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(body)["files"]
            ]
            return 200, {"files": modes}
        if place == f"/{name}.git/info/lfs/objects/batch":
            return 200, self._batch(json.loads(body))
        if place.startswith(f"/api/models/{name}/commit/"):
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.files[name][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.files[name][value["path"]] = self.blobs[value["oid"]]
            url = f"{self.address}/{name}/commit/{COMMIT}"
            return 200, {"commitUrl": url, "commitOid": COMMIT, "success": True}
        return None

    def _modelscope(self, method: str, place: str, body: bytes) -> tuple[int, Any] | None:
        if (method, place) == ("POST", "/api/v1/models"):
            asked = json.loads(body)
            name = f"{asked['Path']}/{asked['Name']}"
            if name in self.visible:
                return 400, {"Code": 400, "Message": "exists already"}
            self.make(name, "public" if asked["Visibility"] == 5 else "private", asked["License"])
            return 200, {"Code": 200, "Success": True, "Data": {"Path": name}}
        name = "/".join(place.partition("/models/")[2].split("/")[:2])
        if name not in self.visible:
            return None
        if place.endswith("/info/lfs/objects/batch"):
            return 200, {"Code": 200, "Data": self._batch(json.loads(body))}
        if "/commit/" in place:
            for action in json.loads(body)["actions"]:
                held = self.files[name]
                if action["type"] == "lfs":
                    held[action["path"]] = self.blobs[action["sha256"]]
                else:
                    held[action["path"]] = base64.b64decode(action["content"])
            return 200, {"Code": 200, "Success": True, "Data": {"oid": COMMIT}}
        facts = {"Path": "owner", "Name": "name", "private": self.visible[name] == "private"}
        return 200, {"Code": 200, "success": True, "Success": True, "Data": facts, "data": facts}

    def _batch(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {
            "transfer": "basic",
            "objects": [
                {
                    "oid": one["oid"],
                    "size": one["size"],
                    "actions": {"upload": {"href": f"{self.address}/blob/{one['oid']}"}},
                }
                for one in asked["objects"]
            ],
        }

    def verified(self) -> bool:
        """Whether every blob is what its name says."""
        return all(hashlib.sha256(blob).hexdigest() == name for name, blob in self.blobs.items())


@contextmanager
def taking(shelf: Shelf) -> Iterator[Shelf]:
    """Answer on a free port of this machine until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, value = shelf.answer(self.command, self.path, self.headers, body)
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    shelf.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield shelf
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
