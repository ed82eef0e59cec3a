"""`sparrow report RUN`, as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparrowlm.cli import main


def test_report_of_a_bare_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"kind": "train", "step": step, "loss": 4.0, "seconds": step} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text(
        "\n".join(json.dumps(row) for row in rows), encoding="utf-8"
    )
    assert main(["report", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").stat().st_size > 1000
    assert (tmp_path / "loss.png").stat().st_size > 1000
    told = capsys.readouterr().out
    assert "the training loss is 4.000" in told
    assert "There is no config.toml." in told
    assert str(tmp_path / "report.html") in told


def test_a_folder_that_is_no_run_is_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert "no such run" in capsys.readouterr().err
