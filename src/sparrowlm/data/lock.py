"""One writer at a time for a result on the disk."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sparrowlm import files
from sparrowlm.errors import RunError
from sparrowlm.files import disk_faults

POLL = 0.2  # seconds


@contextmanager
def locked(result: Path, *, wait: bool, inside: bool = False) -> Iterator[None]:
    """Hold the right to write `result`; the system gives it back when the process ends, however
    it ends. Where the file system knows no locks (some network ones), nobody is kept out.

    Args:
        result: what is written; the lock is a file beside it, gone afterwards.
        wait: until another process is done, instead of raising.
        inside: `result` is a folder that may be there already, and the lock a file in it.

    Raises:
        RunError: another process is writing it.
    """
    path = result / ".lock" if inside else result.parent / f".{result.name}.lock"
    with disk_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _acquire(path)
        while handle is None:
            if not wait:
                raise RunError(
                    "is being written by another process",
                    where=str(result),
                    fix="wait for it, or choose another folder",
                )
            time.sleep(POLL)
            handle = _acquire(path)
    try:
        yield
    finally:
        # Unlinked while held, so that nobody gets a lock on a file that is about to go; Windows
        # removes no open file, and there it stays, empty.
        with suppress(OSError):
            path.unlink()
        os.close(handle)


def made_once(folder: Path, is_whole: Callable[[Path], bool], make: Callable[[Path], None]) -> Path:
    """A folder of a cache, made where it is not whole, by one process while others wait.

    Args:
        folder: what is wanted; its parent is the cache.
        is_whole: whether it can be used as it is.
        make: fills an empty folder, which then takes that name.

    Returns:
        `folder`.
    """
    if is_whole(folder):
        return folder
    with locked(folder, wait=True):
        if is_whole(folder):  # another process was faster
            return folder
        if folder.exists():
            shutil.rmtree(folder)
        files.sweep(folder.parent, folder.name)
        with files.publish(folder) as work:
            make(work)
    return folder


def _acquire(path: Path) -> int | None:
    """An open, locked file, or None while another process holds it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(handle)
        if _same_file(handle, path):
            return handle
    except OSError as fault:
        if fault.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return handle  # no locks here
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None


def _same_file(handle: int, path: Path) -> bool:
    """Whether the name still stands for the file that was locked: its last holder removed it."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _lock(handle: int) -> None:
    """Lock without waiting.

    Raises:
        OSError: another process holds it, or there are no locks.
    """
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
