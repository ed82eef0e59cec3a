"""Reading a log that somebody writes: however it is cut, what was told is what the file says."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparrowlm.report.watch import follow
from sparrowlm.report.watch.follow import CHUNK, Follower

FEW = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def line(number: int, text: str = "") -> bytes:
    row = {"step": number, "seconds": number * 0.731, "text": text}
    return json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n"


def whole(content: bytes) -> list[dict[str, Any]]:
    """The rows of the lines that have their end."""
    return [json.loads(part) for part in content.split(b"\n")[:-1]]


class Told:
    """Everything that a follower has said, as its listener holds it."""

    def __init__(self, path: Path) -> None:
        self.follower = Follower(path)
        self.rows: list[dict[str, Any]] = []

    def read(self, limit: int = CHUNK) -> None:
        news = self.follower.read(limit)
        self.rows = (self.rows if not news.restarted else []) + news.rows

    def read_all(self, limit: int = CHUNK) -> None:
        self.read(limit)
        while self.follower.behind:
            self.read(limit)


@FEW
@given(
    texts=st.lists(st.text(max_size=20), max_size=12),
    cuts=st.lists(st.integers(0, 10_000), max_size=12),
    limit=st.integers(200, 900),
)
def test_any_cutting_of_writes_gives_the_same_rows(
    texts: Sequence[str], cuts: Sequence[int], limit: int, tmp_path: Path
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.unlink(missing_ok=True)
    content = b"".join(line(number, text) for number, text in enumerate(texts))
    places = sorted({0, len(content), *(cut % (len(content) + 1) for cut in cuts)})
    told = Told(path)
    for start, stop in pairwise(places):
        with path.open("ab") as file:
            file.write(content[start:stop])
        told.read(limit)
    told.read_all(limit)
    assert told.rows == whole(content)
    assert not told.follower.broken


@FEW
@given(data=st.data())
def test_a_log_that_is_cut_back_and_written_on_is_told_anew(
    data: st.DataObject, tmp_path: Path
) -> None:
    """Whether or not somebody looks between the cut and what follows it."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"")
    told, number = Told(path), 0
    for _ in range(data.draw(st.integers(1, 8))):
        for _ in range(data.draw(st.integers(0, 4))):
            number += 1  # a clock never says the same twice
            with path.open("ab") as file:
                file.write(line(number))
        if data.draw(st.booleans()):
            told.read()
        lines = path.read_bytes().splitlines(keepends=True)
        kept = b"".join(lines[: data.draw(st.integers(0, len(lines)))])
        os.truncate(path, len(kept))
        if data.draw(st.booleans()):
            told.read()
    told.read_all()
    assert told.rows == whole(path.read_bytes())


def test_a_killed_writers_last_line_is_left_for_later(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(1) + line(2)[:-9])
    told = Told(path)
    told.read()
    assert [row["step"] for row in told.rows] == [1]
    told.read()
    assert told.follower.behind == 0, "nothing to wait for but the writer"
    os.truncate(path, len(line(1)))  # as a resumed run does
    with path.open("ab") as file:
        file.write(line(3) + line(4))
    told.read()
    assert [row["step"] for row in told.rows] == [1, 3, 4]


def test_a_file_may_come_go_and_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    told = Told(path)
    told.read()
    assert told.rows == []
    path.write_bytes(line(1) + line(2))
    told.read()
    path.unlink()
    told.read()
    assert told.rows == []
    path.write_bytes(line(5) + line(6) + line(7))
    told.read()
    assert [row["step"] for row in told.rows] == [5, 6, 7]


def test_what_is_no_row_is_counted_and_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(1) + b"{oops\n" + b"[" * 100_000 + b"\n\xff\xfe\n7\n" + line(2))
    told = Told(path)
    told.read()
    assert [row["step"] for row in told.rows] == [1, 2]
    assert told.follower.broken == 3


def test_a_line_longer_than_a_reading_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(1) + line(2, "x" * 5000) + line(3))
    told = Told(path)
    told.read_all(limit=500)
    assert [row["step"] for row in told.rows] == [1, 3]
    assert told.follower.broken == 1


def test_a_reading_is_no_longer_than_it_may_be(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(map(line, range(1000))))
    told = Told(path)
    told.read(limit=1000)
    assert 0 < told.follower.offset <= 1000
    assert told.follower.behind == path.stat().st_size - told.follower.offset
    assert 100 * len(line(1)) < follow.CHUNK
