"""Ten thousand broken lines over every reader: all of them are accepted or rejected."""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparrowlm.config import DataConfig, RolloutConfig, TokenizerConfig
from sparrowlm.data.prompts import open_prompts
from sparrowlm.data.reader import Reader
from sparrowlm.data.sources import Source
from sparrowlm.data.survey import Survey, encoded
from sparrowlm.errors import SparrowError
from sparrowlm.text.chat import ChatFormat
from sparrowlm.text.tables import read_csv
from sparrowlm.text.tokenizer import train_tokenizer

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


def csv_of(path: Path, lines: list[bytes], header: bytes = b"text,n") -> None:
    path.write_bytes(header + b"\n" + b"".join(row + b"\n" for row in lines))


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


@pytest.mark.parametrize("header", [b"text,n", b"history,q,a"])
def test_every_line_of_a_broken_table_is_in_one_row(tmp_path: Path, header: bytes) -> None:
    """A row begins behind the one before and is a line, or as many as its quote stays open for."""
    chance, accepted = random.Random(4), 0
    parts = [*PARTS, b"[['a', 'b']]", b"q,a", b",one,two", b"[],one,two"]
    for number in range(FILES):
        lines = [b"".join(chance.choices(parts, k=chance.randrange(5))) for _ in range(LINES)]
        path = tmp_path / f"{number}.csv"
        csv_of(path, lines, header)
        rows = list(read_csv(path, "text"))
        starts = [row.line - 2 for row in rows]
        assert starts[0] == 0
        for start, stop in zip(starts, [*starts[1:], LINES], strict=True):
            assert stop == start + 1 or (stop > start and b'"' in lines[start])
        reader = read(path)
        assert reader is not None
        assert reader.accepted + reader.rejected == len(rows)
        accepted += reader.accepted
        whole = [row.replace(b'"', b"") for row in lines]  # no quote, so a row is a line
        csv_of(path, whole, header)
        reader = read(path)
        assert reader is not None
        assert reader.accepted + reader.rejected == LINES
    assert accepted


def test_every_element_of_a_broken_array_is_a_row(tmp_path: Path) -> None:
    """Whatever is inside, while its brackets and quotes are even."""
    chance, met = random.Random(5), Counter[str]()
    broken = [part for part in PARTS if not set(part) & set(b'"[]{},\\')]
    broken += [b'{"text": }', b'{"text": [}}', b'["text"]', b'{"text": "\xff"}', b'{"text" "x"}']
    for number in range(FILES):
        path = tmp_path / f"{number}.json"
        elements = [chance.choice([*broken, b'{"text": "one"}', b"[[{}]]"]) for _ in range(LINES)]
        array_of(path, elements)
        reader = read(path)
        assert reader is not None
        assert reader.accepted + reader.rejected == LINES
        met["accepted"] += reader.accepted
        met["rejected"] += reader.rejected
    assert met["accepted"]
    assert met["rejected"]


TURNS = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "so"}]
WHOLE = {
    "chats": {"messages": TURNS, "tools": "[]"},
    "pairs": {"prompt": "p", "chosen": TURNS, "rejected": [{"role": "assistant", "content": "no"}]},
    "labelled": {"prompt": "p", "completion": "c", "label": True},
    "prompts": {"prompt": TURNS[:1], "gold": 1},
}
DEEP: list[Any] = []
for _ in range(600):
    DEEP = [DEEP]
ODD = [None, 3, 1e999, "", "x", "\ud800", "[", "{}", [], [None], {}, {"role": []}, DEEP, True,
       {"from": ["human"], "value": 1}, {"role": "assistant"}, [["a"]], {"function": {"name": 1}},
       {"role": "tool", "content": "t"}, {"from": "gpt", "value": "hi"}]  # fmt: skip


def changed(value: Any, chance: random.Random) -> Any:
    """The value with something else in one of its places."""
    match value:
        case dict() if value and chance.randrange(6):
            key = chance.choice([*value, "tools", "tool_calls", "reasoning_content"])
            return value | {key: changed(value.get(key), chance)}
        case list() if value and chance.randrange(4):
            place = chance.randrange(len(value))
            return [*value[:place], changed(value[place], chance), *value[place + 1 :]]
        case _:
            return chance.choice(ODD)


@pytest.mark.parametrize("kind", WHOLE)
def test_broken_conversations_are_accepted_or_rejected(tmp_path: Path, kind: str) -> None:
    chance = random.Random(6)
    rows = [
        chance.choice([line(chance), json.dumps(changed(WHOLE[kind], chance)).encode()])
        for _ in range(1500)
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([json.dumps(WHOLE[kind]).encode(), *rows]))
    sources = [Source(tmp_path / "a.jsonl")]
    tokenizer = train_tokenizer([json.__doc__ or ""], TokenizerConfig(vocab_size=300))
    if kind == "prompts":
        for chat in (True, False):
            config = RolloutConfig(chat=chat)
            found = open_prompts(sources, tokenizer, config, val_fraction=0.1, skip_bad=True)
            told = found.description
            assert told["prompts"] + told["held_out"] + told["rejected"] == len(rows) + 1
            assert told["prompts"] > 1
            assert told["rejected"]
        return
    survey = Survey(sources, kind, skip_bad=True)
    for _ in encoded(survey, ChatFormat(tokenizer)):
        pass
    assert survey.accepted + len(survey.rejected) == len(rows) + 1
    assert survey.accepted > 1
    assert survey.rejected


@pytest.mark.parametrize("suffix", ["parquet", "jsonl.gz", "csv.zst", "json.gz", "h5"])
def test_damaged_files_are_told(tmp_path: Path, suffix: str) -> None:
    chance = random.Random(3)
    for number in range(2 if suffix == "parquet" else 20):
        path = tmp_path / f"{number}.{suffix}"
        path.write_bytes(b"".join(line(chance) for _ in range(50)))
        assert read(path) is None
