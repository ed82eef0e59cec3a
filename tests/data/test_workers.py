"""What worker processes import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import sparrowlm

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
    environment = {name: each for name, each in os.environ.items() if name != "PYTHONSAFEPATH"}
    arguments = ["data", "prepare", "a.jsonl", "--tokenizer", "bytes", "--out", "out"]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "bin" / "sparrow"), *arguments, "--workers", "2"],
        cwd=work, capture_output=True, text=True, check=False, timeout=120,
        env=environment | {"PYTHONPATH": str(Path(sparrowlm.__file__).parents[1])},
    )  # fmt: skip
    assert "in the way" not in done.stderr
    assert done.returncode == 0, done.stderr
    assert (work / "out" / "dataset.json").is_file()
