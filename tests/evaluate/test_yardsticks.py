"""The compressors, against the command-line tools and what must hold of any of them."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from sparrowlm.errors import DataError
from sparrowlm.evaluate.yardsticks import (
    gzip_bits_per_byte,
    primed_xz_bits_per_byte,
    xz_bits_per_byte,
)


def _noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize(("tool", "measure", "within"), [
    ("gzip", gzip_bits_per_byte, 2e-3),  # GNU gzip has a deflate of its own
    ("xz", xz_bits_per_byte, 0.0),
])  # fmt: skip
def test_bits_per_byte_against_the_command(shared_data: Path, tool: str, measure, within) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"needs {tool}")
    text = (shared_data / "wizard_of_oz.txt").read_bytes()
    done = subprocess.run([tool, "-9", "-c"], input=text, capture_output=True, check=True)
    assert measure(text) == pytest.approx(8 * len(done.stdout) / len(text), rel=within)


def test_noise_takes_eight_bits_a_byte() -> None:
    for measure in (gzip_bits_per_byte, xz_bits_per_byte):
        assert measure(_noise(100_000)) == pytest.approx(8, abs=0.02)


def test_what_was_seen_in_training_costs_next_to_nothing() -> None:
    seen = _noise(50_000)
    assert primed_xz_bits_per_byte(seen[:20_000], train=seen) < 0.5
    assert primed_xz_bits_per_byte(_noise(20_000, 1), train=seen) == pytest.approx(8, abs=0.05)


def test_priming_with_nothing_saves_only_the_container() -> None:
    text = _noise(20_000)
    assert primed_xz_bits_per_byte(text, b"") == pytest.approx(xz_bits_per_byte(text), abs=0.03)


def test_only_the_end_of_the_training_bytes_that_fits_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sparrowlm.evaluate.yardsticks.XZ_DICTIONARY", 30_000)
    text, train = _noise(20_000), _noise(50_000, 1)
    assert primed_xz_bits_per_byte(text, train) == primed_xz_bits_per_byte(text, train[-10_000:])


def test_no_bytes_are_an_error() -> None:
    for measure in (gzip_bits_per_byte, xz_bits_per_byte):
        with pytest.raises(DataError, match="no held-out bytes"):
            measure(b"")
