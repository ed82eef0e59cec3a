"""What a process settles before PyTorch is loaded: how threads wait and how memory is kept.

Called by the command line and by nothing else: a library does not change its host's process.
"""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h


def settle() -> None:
    """Threads sleep where they wait, and freed memory is used again.

    OpenMP's threads otherwise spin at the end of every operation. On a machine that does anything
    else, they spin against the thread they wait for: one busy program beside a small model on
    two cores makes its steps twenty times slower, and only twice with sleeping threads; alone
    there is no difference (docs/performance.md). A variable that the user has set stays.

    glibc hands blocks from 128 KiB on back to the system and fetches them anew, page fault by
    page fault, which costs a small model's step a tenth.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the largest that glibc takes
            mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
            mallopt(_M_TOP_PAD, 64 << 20)
