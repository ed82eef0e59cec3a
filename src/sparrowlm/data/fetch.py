"""One file from a server, resumed where it was cut off, and checked.

The hub's own client starts a file over when its process was stopped (huggingface_hub 2.4), and a
corpus of gigabytes over a home line is stopped often. So bytes come in here, from a hub as from
anywhere: what is there is kept under `.part`, and the next run asks for the rest.
"""

from __future__ import annotations

import hashlib
import http.client
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from sparrowlm.data.hub import GONE, HF_VARIABLE, REFUSED, absent, gated, silent
from sparrowlm.errors import EnvironmentFault
from sparrowlm.files import adopt, disk_faults, hash_file

BLOCK = 1 << 20
TRIES = 5  # in a row without a new byte
PAUSE = 1.0  # seconds before the second of them, twice as many before each further one
TIMEOUT = 30  # seconds without an answer

Heard = Callable[[int], None]
"""Told how many bytes of the file are there."""


@dataclass(frozen=True)
class Remote:
    """A file on a server, and what is known of it."""

    name: str  # below the folder it is to be in
    url: str
    size: int | None = None
    sha256: str = ""
    blob: str = ""  # git's id of the content: a hub's, of files that are not large
    headers: Mapping[str, str] = field(default_factory=dict)  # for `url`, not for where it sends us

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc


def fetch(remote: Remote, final: Path, part: Path, heard: Heard) -> None:
    """Download a file; it appears under its name once it is whole and checked.

    Args:
        remote: what to get.
        final: where it is to be.
        part: where it grows, on the same disk; kept when the connection is lost.
        heard: told of every block.

    Raises:
        DataError: the server refuses it, or does not have it.
        EnvironmentFault: the server does not answer, what it sent is not what was promised, or
            the disk is full.
    """
    failed = 0
    while True:
        before = _size(part)
        try:
            if _take(remote, part, heard):
                break
            why = "the connection was cut"
        except HTTPError as fault:
            why = _refused(remote, fault)
            if fault.code == 416:  # what is there does not begin what the server has
                part.unlink(missing_ok=True)
        except (OSError, http.client.HTTPException) as fault:
            why = str(fault) or type(fault).__name__
        failed = 0 if _size(part) > before else failed + 1
        if failed == TRIES:
            why = f"{why}; what has come is kept, and the next run goes on there"
            raise silent(remote.host, remote.url, why, HF_VARIABLE)
        time.sleep(PAUSE * 2 ** (failed - 1))
    check(remote, part)
    adopt(part, final)


def check(remote: Remote, path: Path) -> None:
    """Compare a downloaded file with what the server promised; a wrong one is removed.

    Raises:
        EnvironmentFault: it is something else.
    """
    if is_right(remote, path):
        return
    path.unlink()
    raise EnvironmentFault(
        f"{remote.name} is not what it should be",
        where=remote.host,
        why="its size or checksum differs from what the hub or this program's table says",
        fix="run it again; if it happens again, name another server: --mirror URL",
    )


def is_right(remote: Remote, path: Path) -> bool:
    """Whether a file has the size and the checksum that are known of it."""
    if remote.size is not None and _size(path) != remote.size:
        return False
    if remote.sha256:
        return hash_file(path) == remote.sha256
    return not remote.blob or _git_id(path) == remote.blob


def _take(remote: Remote, part: Path, heard: Heard) -> bool:
    """One connection's worth of the rest; whether the file is whole now."""
    there = _size(part)
    if remote.size is not None and there >= remote.size:
        if there == remote.size:
            return True
        part.unlink()
        there = 0
    request = Request(remote.url, headers={"Range": f"bytes={there}-"} if there else {})
    for name, value in remote.headers.items():
        request.add_unredirected_header(name, value)  # a token is not for the server it sends us to
    with urlopen(request, timeout=TIMEOUT) as answer:
        with disk_faults(part):
            part.parent.mkdir(parents=True, exist_ok=True)
        if there and answer.status != 206:  # it sends all of it again
            part.unlink()
            there = 0
        length = answer.headers.get("Content-Length")
        end = there + int(length) if length else remote.size
        while block := answer.read(BLOCK):
            with disk_faults(part), part.open("ab") as file:
                file.write(block)
            there += len(block)
            heard(there)
    if not there:
        part.touch()
    return end is None or there >= end


def _refused(remote: Remote, fault: HTTPError) -> str:
    """Why a try failed, where another one may not.

    Raises:
        DataError: another one would fail as well.
    """
    told = f"HTTP {fault.code}"
    if fault.code in REFUSED:
        page = remote.url.partition("/resolve/")[0]  # of a hub's file its dataset's
        raise gated(remote.host, remote.url, page, "HF_TOKEN", told) from fault
    if fault.code in GONE:
        raise absent(remote.host, remote.url, f"{remote.name} ({told})") from fault
    return f"HTTP {fault.code} {fault.reason}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _git_id(path: Path) -> str:
    """The id that git gives a file's content."""
    digest = hashlib.sha1(f"blob {_size(path)}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
