"""Real SIGKILLs: what is there afterwards is whole, and the next run finishes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparrowlm import files
from sparrowlm.config.schema import DataConfig
from sparrowlm.data.lock import locked
from sparrowlm.data.prepare import prepare
from sparrowlm.errors import RunError
from sparrowlm.text.tokenizer import byte_tokenizer

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")

PROGRAM = """
import sys
from pathlib import Path
from sparrowlm.config.schema import DataConfig
from sparrowlm.data.prepare import prepare
from sparrowlm.text.tokenizer import byte_tokenizer

if __name__ == "__main__":
    source, out, workers = sys.argv[1:]
    prepare([source], byte_tokenizer(), Path(out), DataConfig(workers=int(workers)))
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("killed") / "a.jsonl"
    rows = (f'{{"text": "row {number} {"word " * (number % 300)}"}}\n' for number in range(8_000))
    path.write_text("".join(rows))
    return path


def start(folder: Path, text: Path, workers: int) -> subprocess.Popen[bytes]:
    program = folder / "program.py"
    program.write_text(PROGRAM)
    return subprocess.Popen(
        [sys.executable, str(program), str(text), str(folder / "out"), str(workers)]
    )


def kill_while_it_writes(process: subprocess.Popen[bytes], folder: Path, wait: float) -> None:
    """SIGKILL `wait` seconds after its first temporary folder is there."""
    deadline = time.monotonic() + 60
    while process.poll() is None and not list(folder.glob(f"{files.TEMPORARY}*")):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    process.wait()


def check_and_finish(folder: Path, text: Path) -> bool:
    """Whether the killed one had finished. Either way, there is a whole dataset afterwards."""
    out = folder / "out"
    finished = out.exists()
    if not finished:
        prepare([str(text)], byte_tokenizer(), out, DataConfig(workers=1))
    files.verify(out)
    assert not list(folder.glob(f"{files.TEMPORARY}*"))
    return finished


def reference(folder: Path, text: Path) -> bytes:
    prepare([str(text)], byte_tokenizer(), folder / "reference", DataConfig(workers=1))
    return (folder / "reference" / files.MANIFEST).read_bytes()


@pytest.mark.parametrize("wait", [0.0, 0.05, 0.3])
def test_killed_and_started_again_it_finishes(tmp_path: Path, text: Path, wait: float) -> None:
    kill_while_it_writes(start(tmp_path, text, workers=1), tmp_path, wait)
    check_and_finish(tmp_path, text)
    whole = reference(tmp_path, text)
    assert (tmp_path / "out" / files.MANIFEST).read_bytes() == whole


@pytest.mark.slow
def test_killed_thirty_times_it_finishes(tmp_path: Path, text: Path) -> None:
    chance = random.Random(7)
    unfinished = 0
    for number in range(30):
        folder = tmp_path / str(number)
        folder.mkdir()
        kill_while_it_writes(start(folder, text, 1 + number % 2), folder, chance.uniform(0, 1.0))
        unfinished += not check_and_finish(folder, text)
    assert unfinished > 5


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_workers_end_with_a_killed_parent(tmp_path: Path, text: Path) -> None:
    process = start(tmp_path, text, workers=2)
    deadline = time.monotonic() + 60
    while len(workers := children_of(process.pid)) < 2 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    check_and_finish(tmp_path, text)


def children_of(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


def test_two_writers_of_one_result_do_not_meet(tmp_path: Path, text: Path) -> None:
    with locked(tmp_path / "out", wait=False):
        process = start(tmp_path, text, workers=1)
        assert process.wait() != 0
        with pytest.raises(RunError, match="is being written by another process"):
            prepare([str(text)], byte_tokenizer(), tmp_path / "out", DataConfig(workers=1))
    prepare([str(text)], byte_tokenizer(), tmp_path / "out", DataConfig(workers=1))
    assert not list(tmp_path.glob(".out.lock"))
