"""Ten thousand broken lines over every reader: all of them are accepted or rejected."""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparrowlm.config.schema import DataConfig
from sparrowlm.data.reader import Reader
from sparrowlm.data.sources import Source
from sparrowlm.errors import SparrowError

FILES, LINES = 20, 125  # of each of four formats: 10,000 lines together
PARTS = [
    b'{"text": "one"}', b'{"text": ', b'{"text": "x", "text": 1}', b'"', b"'", b",", b"[", b"]",
    b"{", b"}", b"\\", b"\\u", b"d800", b"\xff", b"\xe9\xba", "麻".encode(), b"\0", b"\r", b"\t",
    b" ", b"null", b"1e999", b"NaN", b"text", b"a,b", b'"a""b"', b"<|endoftext|>", b"-", b":",
    b"\xef\xbb\xbf", b"[[",
]  # fmt: skip


def line(chance: random.Random) -> bytes:
    """A well-formed row, a row with some bytes changed, or anything."""
    match chance.randrange(4):
        case 0:
            return json.dumps({"text": "row " * chance.randrange(9)}).encode()
        case 1:
            row = bytearray(json.dumps({"n": 1, "text": "row, 麻雀"}).encode())
            for _ in range(chance.randrange(1, 4)):
                row[chance.randrange(len(row))] = chance.choice(b'"\\[]{}, \xff\x00a')
            return bytes(row)
        case _:
            return b"".join(chance.choices(PARTS, k=chance.randrange(8)))


def lines_of(path: Path, lines: list[bytes]) -> int:
    path.write_bytes(b"".join(row + b"\n" for row in lines))
    return len(lines)


def array_of(path: Path, lines: list[bytes]) -> None:
    path.write_bytes(b"[" + b",\n".join(lines) + b"]")


def csv_of(path: Path, lines: list[bytes]) -> None:
    path.write_bytes(b"text,n\n" + b"".join(row + b"\n" for row in lines))


def read(path: Path) -> Reader | None:
    """The reader that has read a file, its bad rows skipped; None where it told of the file."""
    reader = Reader([Source(path)], DataConfig(skip_bad=True))
    try:
        for _, piece in reader.pieces():
            piece.text.encode()
    except SparrowError as fault:
        return None if str(path) in fault.where else reader
    return reader


@pytest.mark.parametrize(
    ("suffix", "form"),
    [("jsonl", lines_of), ("json", array_of), ("csv", csv_of), ("txt", lines_of)],
)
def test_ten_thousand_broken_lines_raise_nothing(
    tmp_path: Path, suffix: str, form: Callable[[Path, list[bytes]], int | None]
) -> None:
    chance, met = random.Random(1), Counter[str]()
    for number in range(FILES):
        path = tmp_path / f"{number}.{suffix}"
        count = form(path, [line(chance) for _ in range(LINES)])
        reader = read(path)
        assert reader is not None
        if suffix == "jsonl":
            assert reader.accepted + reader.rejected == count
        met["accepted"] += reader.accepted
        met["rejected"] += reader.rejected
    assert met["accepted"] or suffix == "txt"  # where one byte rejects a whole file
    assert met["rejected"]


def test_rows_that_are_whole_are_counted_in_every_format(tmp_path: Path) -> None:
    """Where a row's borders are whole, whatever is inside, accepted + rejected = rows."""
    chance = random.Random(2)
    cells = [line(chance).decode("utf-8", "replace") for _ in range(2500)]
    values = [chance.choice([cell, cell, cell, None, 3, ["a"], {"text": cell}]) for cell in cells]
    rows = [chance.choice([{"text": value}, {"txet": value}]) for value in values]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with gzip.open(tmp_path / "a.csv.gz", "wt", newline="", encoding="utf-8") as file:
        table = [[cell] * chance.randrange(1, 4) for cell in cells]
        csv.writer(file).writerows([["n", "text"], *table])
    texts = [value if isinstance(value, str) else None for value in values]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=700)
    for name in ("a.json", "a.jsonl", "a.csv.gz", "a.parquet"):
        reader = read(tmp_path / name)
        assert reader is not None
        assert reader.accepted + reader.rejected == len(cells), name
        assert reader.accepted
        assert reader.rejected


@pytest.mark.parametrize("suffix", ["parquet", "jsonl.gz", "csv.zst", "json.gz", "h5"])
def test_damaged_files_are_told(tmp_path: Path, suffix: str) -> None:
    chance = random.Random(3)
    for number in range(2 if suffix == "parquet" else 20):
        path = tmp_path / f"{number}.{suffix}"
        path.write_bytes(b"".join(line(chance) for _ in range(50)))
        assert read(path) is None
