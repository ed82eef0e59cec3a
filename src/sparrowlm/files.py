"""The one way a result reaches the disk, and the one way a foreign file is opened.

Everything is written under a temporary name beside its place, fsynced, and renamed; a folder gets
a manifest of hashes last. What is killed half-way is therefore not there, and what is there
verifies.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pickle
import pickletools
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from sparrowlm.errors import DataError, EnvironmentFault, RunError

MANIFEST = "manifest.json"
TEMPORARY = ".tmp-"  # prefix of every unfinished file or folder; safe to delete


@contextmanager
def disk_faults(path: Path) -> Iterator[None]:
    """Turn "no space left", "no permission" and a file where a folder has to be into a message
    that names the place."""
    try:
        yield
    except OSError as fault:
        if fault.errno in (errno.ENOTDIR, errno.EEXIST):
            refuse_file(path)
        if fault.errno in (errno.ENOSPC, errno.EDQUOT):
            raise EnvironmentFault(
                "no space left on the device",
                where=str(path),
                why="what was finished before is kept; nothing half-written is left",
                fix="free some space, then run the same command again (with --resume for a run)",
            ) from fault
        if fault.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise EnvironmentFault(
                "may not be written", where=str(path), fix="choose another folder"
            ) from fault
        raise


def refuse_file(folder: Path) -> None:
    """
    Raises:
        RunError: a file is where `folder` or one above it has to be.
    """
    for place in (folder, *folder.parents):
        if place.is_file():
            raise RunError(
                "is a file, and no folder",
                where=str(place),
                why="what is to be below it cannot be written",
                fix="choose another place",
            )


@contextmanager
def writing(final: Path) -> Iterator[BinaryIO]:
    """Write a file piece by piece: yields it open under a temporary name, and gives it its own
    once everything is on the disk. On an exception `final` is as it was."""
    with disk_faults(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=TEMPORARY, dir=final.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
            os.chmod(name, 0o644)
            adopt(Path(name), final)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise


def adopt(whole: Path, final: Path) -> None:
    """Give a file that is whole its final name, once it is safe on the disk."""
    with disk_faults(final):
        with whole.open("rb+") as file:
            os.fsync(file.fileno())
        final.parent.mkdir(parents=True, exist_ok=True)
        os.replace(whole, final)
        _sync_folder(final.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file: it is there entirely or as it was before."""
    with writing(path) as file:
        file.write(content)


def write_text(path: Path, content: str) -> None:
    r"""`write_bytes` of UTF-8; line ends stay `\n` on every system."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` of readable JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        RunError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as fault:
        raise RunError("no such file", where=str(path)) from fault
    except (json.JSONDecodeError, UnicodeDecodeError) as fault:
        raise RunError(f"is not JSON: {fault}", where=str(path)) from fault


@contextmanager
def publish(final: Path, *, replace: bool = False) -> Iterator[Path]:
    """Write a folder: yields a temporary one, and gives it its name once its manifest is written.

    On an exception the temporary folder is removed and `final` is as it was.

    Args:
        final: the folder's name; must not exist unless `replace`.
        replace: an existing folder gives way.
    """
    if final.exists() and not replace:
        raise RunError("exists already", where=str(final), fix="choose another name or remove it")
    with disk_faults(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{final.name}-", dir=final.parent))
        try:
            os.chmod(work, 0o755)  # mkdtemp's 0700 would make a shared result unreadable
            yield work
            write_json(work / MANIFEST, {"files": _hashes(work)})
            _move_into_place(work, final)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise


def verify(folder: Path) -> None:
    """Compare a published folder with its manifest.

    Raises:
        RunError: the manifest or a file is missing, or a hash differs.
    """
    recorded = read_json(folder / MANIFEST).get("files")
    if not isinstance(recorded, dict):
        raise RunError("has no list of files", where=str(folder / MANIFEST))
    for name, entry in recorded.items():
        path = folder / name
        if not path.is_file():
            raise RunError("is missing though the manifest lists it", where=str(path))
        if path.stat().st_size != entry["bytes"] or hash_file(path) != entry["sha256"]:
            raise RunError("differs from its manifest", where=str(path), fix="restore the file")


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; reads it in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sweep(folder: Path, name: str = "") -> None:
    """Remove what killed writers left in `folder`; call it where no other writer is at work.

    Args:
        folder: may be absent.
        name: only what was to become this result; "" for everything.
    """
    # mkdtemp's own part has eight characters, none of them a hyphen: "a" does not take "a-b".
    ours = re.compile(re.escape(f"{TEMPORARY}{name}-") + r"(old-)?[a-z0-9_]{8}")
    for left in folder.glob(f"{TEMPORARY}*"):
        if name and not ours.fullmatch(left.name):
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def read_foreign(path: Path) -> Any:
    """A pickle of dicts, lists, tuples, strings, numbers, booleans and None, such as nanoGPT's
    `meta.pkl`. Nothing is imported or called: an opcode that could is refused before anything
    is built.

    Raises:
        DataError: the file asks for anything else, or is not a pickle.
    """
    content = path.read_bytes()
    refused = {"GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"}
    refused |= {"EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "NEXT_BUFFER", "READONLY_BUFFER"}
    try:
        for opcode, _, position in pickletools.genops(content):
            if opcode.name in refused:
                raise DataError(
                    f"asks to run code ({opcode.name} at byte {position})",
                    where=str(path),
                    why="only dicts, lists, strings and numbers are read from a pickle",
                    fix="do not trust this file",
                )
    except ValueError as fault:
        raise DataError(f"is not a pickle: {fault}", where=str(path)) from fault
    try:
        return _Literals(io.BytesIO(content)).load()
    except Exception as fault:  # a stream of harmless opcodes may still break them anywhere
        raise DataError(f"is not a whole pickle: {fault}", where=str(path)) from fault


class _Literals(pickle.Unpickler):
    """A second lock behind the opcode check: no name is ever looked up."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise pickle.UnpicklingError(f"refused to load {module_name}.{global_name}")


def _hashes(folder: Path) -> dict[str, dict[str, Any]]:
    """Hash and fsync every file below `folder`."""
    entries = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
            name = path.relative_to(folder).as_posix()
            entries[name] = {"bytes": path.stat().st_size, "sha256": hash_file(path)}
    return entries


def _move_into_place(work: Path, final: Path) -> None:
    """Rename `work` to `final`, putting a former `final` aside first and removing it last."""
    _sync_folder(work)
    if final.exists():
        aside = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{final.name}-old-", dir=final.parent))
        os.replace(final, aside / "old")
        os.replace(work, final)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        os.replace(work, final)
    _sync_folder(final.parent)


def _sync_folder(folder: Path) -> None:
    """fsync a directory, so that a rename survives a power cut; Windows has no such call."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
