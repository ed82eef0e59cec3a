"""How a process keeps its memory."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

# Large and freed, as a gradient is at every step; the sizes differ, as those of a model do.
FAULTS = """
import json, resource, sys
import numpy as np
from sparrowlm.process import keep_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for size in (100 << 20, 40 << 20, 3 << 20):
        np.empty(size, np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "kept":
    keep_memory()
faults()
print(json.dumps(faults()))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.parametrize(("how", "few"), [("kept", True), ("as glibc does", False)])
def test_freed_memory_is_used_again(how: str, few: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True, timeout=60
    )
    # 100 MB are 25,600 pages of 4 KiB, or 50 of 2 MiB.
    assert (json.loads(done.stdout) < 10) is few
