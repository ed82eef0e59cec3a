"""`sparrow plan --memory`: which sizes can be asked for, and what is said of them."""

from __future__ import annotations

import pytest

from sparrowlm.cli import main


@pytest.mark.parametrize("memory", ["0GB", "0GB,24GB", "24GB,0GB", "1KB", ",", "4GB,,8GB", " "])
def test_a_size_that_is_none(memory: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "pile-13m", "--memory", memory]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: --memory: ")


def test_one_card_is_told_as_it_is_among_several(capsys: pytest.CaptureFixture[str]) -> None:
    """Half precision does not fit 40 GB, and float32 with checkpointing does."""
    assert main(["plan", "pile-2b", "--memory", "40GB"]) == 0
    one = capsys.readouterr().out
    assert main(["plan", "pile-2b", "--memory", "24GB,40GB"]) == 0
    several = capsys.readouterr().out
    (row,) = [line.split() for line in one.splitlines() if line.startswith("40")]
    assert row in [line.split() for line in several.splitlines()]
    assert row[2:] == ["4", "on", "33.7", "GB", "in", "float32"]
    assert "85% of a card is counted on" in one
    assert "2,019,995,648 parameters" in one
    assert "steps" in one  # and how long this machine takes for them
    assert "does not hold it" in several
