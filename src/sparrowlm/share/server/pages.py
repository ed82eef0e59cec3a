"""The chat page's files, read once from the package and served as they are."""

from __future__ import annotations

from importlib.resources import files
from typing import NamedTuple

from fastapi import APIRouter, Response

from sparrowlm.share.server.faults import ApiFault

KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
}


class PageFile(NamedTuple):
    """A file as it goes out."""

    content: bytes
    kind: str


def page_files() -> dict[str, PageFile]:
    """By name, all that the package has. What is served is what was found, so no path can lead
    anywhere else."""
    folder = files("sparrowlm.share") / "page"
    if not folder.is_dir():
        return {}
    found = {}
    for file in folder.iterdir():
        kind = KINDS.get(f".{file.name.rpartition('.')[2]}")
        if kind is not None and file.is_file():
            found[file.name] = PageFile(file.read_bytes(), kind)
    return found


def page_router() -> APIRouter:
    """`/` and `/page/NAME`."""
    router, known = APIRouter(include_in_schema=False), page_files()

    @router.get("/")
    async def index() -> Response:
        return _served(known, "index.html")

    @router.get("/page/{name}")
    async def file(name: str) -> Response:
        return _served(known, name)

    return router


def _served(known: dict[str, PageFile], name: str) -> Response:
    if name not in known:
        raise ApiFault(404, "there is no such file", code="not_found")
    content, kind = known[name]
    # Asked for again after an update of the package, and small enough to be.
    return Response(content, headers={"Content-Type": kind, "Cache-Control": "no-cache"})
