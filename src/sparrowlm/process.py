"""What a process settles before PyTorch is loaded: how threads wait and how memory is kept.

Called by the command line and by benchmarks: a library does not change its host's process. And what
the processes that it starts may import.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


def settle() -> None:
    """Threads sleep where they wait, and freed memory is used again.

    OpenMP's threads otherwise spin at the end of every operation. On a machine that does anything
    else, they spin against the thread they wait for: one busy program beside a small model on
    two cores makes its steps six times slower and more, and only twice with sleeping threads; alone
    there is no difference (docs/performance.md). A variable that the user has set stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_memory()


def keep_memory() -> None:
    """Freed memory stays with the process until its end, ready for the next tensor.

    glibc maps every block above a threshold (32 MB at most) by itself and gives it back when it
    is freed; the next one is fetched anew, page fault by page fault. The gradient of a
    vocabulary's table is such a block at every step: so a model of 109 M parameters trains at seven
    to eight tenths of its speed (docs/performance.md). Elsewhere than under glibc nothing happens.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(_M_MMAP_MAX, 0)  # no block has a mapping of its own, which would end with it
            mallopt(_M_TRIM_THRESHOLD, -1)  # the heap's end is never given back either
            mallopt(_M_TOP_PAD, 64 << 20)


@contextmanager
def no_strays() -> Iterator[None]:
    """Processes that start meanwhile import nothing from the working directory. `multiprocessing`
    has them look there first, and who has a `signal.py` there would see it run by every worker."""
    ours = "PYTHONSAFEPATH" not in os.environ
    if ours:
        os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if ours:
            os.environ.pop("PYTHONSAFEPATH", None)
