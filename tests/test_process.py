"""What a process settles: how it keeps its memory, and what its children import."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import sparrowlm

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


# As the installed `sparrow` does, which has its own folder on the path and not the working one.
COMMAND = """
import sys
from sparrowlm.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


def test_workers_do_not_run_what_lies_in_the_working_directory(tmp_path: Path) -> None:
    work = tmp_path / "work"
    for folder in ("bin", "work"):
        (tmp_path / folder).mkdir()
    (tmp_path / "bin" / "sparrow").write_text(COMMAND)
    (work / "signal.py").write_text("raise SystemExit('in the way')\n")
    (work / "a.jsonl").write_text('{"text": "one"}\n' * 50)
    arguments = ["data", "prepare", "a.jsonl", "--tokenizer", "bytes", "--out", "out"]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "bin" / "sparrow"), *arguments, "--workers", "2"],
        cwd=work, capture_output=True, text=True, check=False, timeout=120,
        env=os.environ | {"PYTHONPATH": str(Path(sparrowlm.__file__).parents[1])},
    )  # fmt: skip
    assert "in the way" not in done.stderr
    assert done.returncode == 0, done.stderr
    assert (work / "out" / "dataset.json").is_file()
