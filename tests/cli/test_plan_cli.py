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
