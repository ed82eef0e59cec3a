"""Memory does not grow with the input: a tenth of the two gigabytes that are promised, with the
bound that two of them have to keep."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

LIMIT = 1_000_000_000  # bytes
# Prints the peak of this process and of the largest of its workers, in KiB. Linux hands ru_maxrss
# of whoever started a process down to it; VmHWM is its own, and workers begin as small as that.
PROGRAM = """
import re, resource, sys
from pathlib import Path
from sparrowlm.cli import main
code = main(["data", "prepare", *sys.argv[1:]])
own = re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text()).group(1)
print("peak", own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def write_text(path: Path, megabytes: int) -> None:
    """This file over and over, numbered so that none is a copy."""
    text = Path(__file__).read_text(encoding="utf-8")
    written = number = 0
    with path.open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as packed:
        while written < megabytes * 1e6:
            packed.write(json.dumps({"text": f"{number}\n{text}"}).encode() + b"\n")
            written += len(text)
            number += 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("options", [[], ["--dedup", "near"]])
def test_two_hundred_megabytes_take_less_than_a_gigabyte(
    shared_data: Path, tmp_path: Path, options: list[str]
) -> None:
    write_text(tmp_path / "a.jsonl.zst", 200)
    arguments = [str(tmp_path / "a.jsonl.zst"), "--out", str(tmp_path / "out"), "--workers", "2"]
    arguments += ["--tokenizer", str(shared_data / "tokenizers" / "gpt2"), *options]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    own, worker = map(int, done.stdout.splitlines()[-1].split()[1:])
    assert (own + 2 * worker) * 1024 < LIMIT
