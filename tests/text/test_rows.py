"""Rows of JSON arrays, CSV and Parquet, and what is said about broken ones."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparrowlm.errors import DataError, EnvironmentFault
from sparrowlm.text import arrays, extras, parquet, reading, rows, tables
from sparrowlm.text.arrays import split_array
from sparrowlm.text.documents import Document, Rejected, read_documents
from sparrowlm.text.tables import read_history

HERE = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TEXTS = ["one", 'she said "two, three"', "麻雀\n雖小", "", "  \n\n", "<|endoftext|>", "é" * 300]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_csv(path: Path, header: list[str], rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def rows_of(path: Path, **options: str) -> list[Document | Rejected]:
    return list(read_documents(path, **options))


def texts(path: Path, **options: str) -> list[str]:
    rows = rows_of(path, **options)
    assert all(isinstance(row, Document) for row in rows), rows
    return [row.text for row in rows if isinstance(row, Document)]


def reasons(path: Path, **options: str) -> list[tuple[int, str]]:
    return [(row.line, row.reason) for row in rows_of(path, **options) if isinstance(row, Rejected)]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_arrays_give_every_element(
    tmp_path: Path, indent: int | None, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BLOCK", block)
    content = json.dumps([{"n": [1, {"a": "]"}], "text": text} for text in TEXTS], indent=indent)
    assert texts(write(tmp_path / "a.json", "\ufeff \n" + content + "\n")) == TEXTS


def test_compressed_arrays_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json.gz", gzip.compress(b'[{"text": "x"}]'))
    assert texts(path) == ["x"]
    assert texts(write(tmp_path / "b.json", "[]")) == texts(write(tmp_path / "c.json", "")) == []


def test_json_that_is_no_array_is_read_as_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '{"text": "one"}\n{"text": "two"}\n')
    assert texts(path) == ["one", "two"]


def test_a_malformed_element_is_rejected_alone(tmp_path: Path) -> None:
    content = b"""[{"text": "one"},
      {"text": 1x}, {"txet": "a"},
      {"text": null}, "text", {"text": "\xff"}, {"text": "\\ud800"},,
      {"text": "two"}}, {"text": "three"}
    ]"""
    path = write(tmp_path / "a.json", content)
    expected = [
        (2, "not JSON"), (2, "no key 'text'; did you mean 'txet'?"), (3, "null, not a string"),
        (3, "JSON string, not an object"), (3, "not UTF-8"), (3, "surrogate"), (3, "blank"),
        (4, "not JSON"),
    ]  # fmt: skip
    found = reasons(path)
    assert [line for line, _ in found] == [line for line, _ in expected]
    assert all(want in reason for (_, want), (_, reason) in zip(expected, found, strict=True))
    assert [row.text for row in rows_of(path) if isinstance(row, Document)] == ["one", "three"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('[{"text": "one"}, {"text": "cut', "the array does not end"),
        ('[{"text": "one"}', "the array does not end"),
        ('[{"text": "one"}]\n\n{"text": "two"}', "more follows the end of the array"),
        ('[{"text": "one"},]', "blank line"),
    ],
)
def test_arrays_that_end_badly_are_told(tmp_path: Path, content: str, told: str) -> None:
    path = write(tmp_path / "a.json", content)
    assert [reason for _, reason in reasons(path)] == [told]


def test_an_array_is_never_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BLOCK", 1 << 16)
    path = tmp_path / "a.json"
    with path.open("w") as file:
        file.write("[" + ",".join(json.dumps({"text": f"{n}" * 500}) for n in range(5000)) + "]")
    assert path.stat().st_size > 9e6
    tracemalloc.start()
    assert sum(1 for _ in read_documents(path)) == 5000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4e6


def test_an_open_quote_is_not_read_into_memory_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "LARGEST_ROW", 1 << 20)
    pieces = iter(['{"text": "open, '] + ["x" * (1 << 16)] * 200)
    (element,) = split_array(pieces)
    assert "left open" in element.fault
    assert next(pieces, None) is not None


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json"])
def test_a_line_without_an_end_is_one_bad_row(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its head is kept, the rest passed over up to the next line end."""
    monkeypatch.setattr(rows, "LARGEST_ROW", 1 << 16)
    monkeypatch.setattr(reading, "BLOCK", 1 << 12)
    row, limit = b'{"text": "one"}', 1 << 16
    just = b'{"text": "' + b"x" * (limit - 12) + b'"}'
    lines = [row, b"y" * 50 * limit, row, just, just + b" ", b"z" * (limit + 1)]
    content = b"\n".join(lines)
    write(tmp_path / name, gzip.compress(content) if name.endswith("gz") else content)
    tracemalloc.start()
    found = rows_of(tmp_path / name)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [isinstance(one, Rejected) for one in found] == [False, True, False, False, True, True]
    assert [one.line for one in found] == [1, 2, 3, 4, 5, 6]
    assert found[1].reason == "a line of more than 65,536 bytes"
    assert peak < 10 * limit


def test_a_csv_line_without_an_end_is_one_bad_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "LARGEST_ROW", 1 << 16)
    monkeypatch.setattr(reading, "BLOCK", 1 << 12)
    limit = 1 << 16
    lines = ["text,n", "one,1", "y," * 50 * limit, "two,2", "z" * (limit - 2) + ",3"]
    write(tmp_path / "a.csv", "\n".join([*lines, "w" * 9 * limit]))
    tracemalloc.start()
    found = rows_of(tmp_path / "a.csv")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [isinstance(one, Rejected) for one in found] == [False, True, False, False, True]
    assert [one.line for one in found] == [2, 3, 4, 5, 6]
    assert reasons(tmp_path / "a.csv")[0] == (3, "a line of more than 65,536 characters")
    assert peak < 60 * limit  # the cells of what is kept, each a string


def test_csv_columns_are_read_with_quoted_line_ends(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", ["id", "text"], [["1", text] for text in TEXTS])
    assert texts(path) == TEXTS
    assert texts(path, text_key="id") == ["1"] * len(TEXTS)
    assert [row.line for row in rows_of(path)][:5] == [2, 3, 4, 6, 7]
    limit = csv.field_size_limit()
    large = write_csv(tmp_path / "b.csv", ["text"], [["x" * 1_000_000]])
    assert texts(large) == ["x" * 1_000_000]
    assert csv.field_size_limit() == limit


def test_csv_has_a_mark_another_encoding_or_is_compressed(tmp_path: Path) -> None:
    content = "\ufefftext,n\r\n麻雀,1\r\n"
    assert texts(write(tmp_path / "a.csv", content)) == ["麻雀"]
    assert texts(write(tmp_path / "a.csv.gz", gzip.compress(content.encode()))) == ["麻雀"]
    chinese = write(tmp_path / "b.csv", content[1:].encode("gb18030"))
    assert texts(chinese, encoding="gb18030") == ["麻雀"]
    assert reasons(chinese) == [(2, "not utf-8 (data.encoding names another)")]


def test_bad_csv_rows_are_rejected_alone(tmp_path: Path) -> None:
    content = b'n,text\n1,"one"\n2\n\n3,"tw"o"\n4,\xff\n5,a,b\n6,six\n7,"open\nand so on\n'
    path = write(tmp_path / "a.csv", content)
    assert [row.text for row in rows_of(path) if isinstance(row, Document)] == ["one", "six"]
    found = reasons(path)
    assert [line for line, _ in found] == [3, 4, 5, 6, 7, 9]
    for (_, reason), want in zip(
        found, ["1 cells under 2", "blank", "not CSV", "not utf-8", "3 cells", "not CSV"],
        strict=True,
    ):  # fmt: skip
        assert want in reason


def test_a_missing_column_is_told_with_those_there_are(tmp_path: Path) -> None:
    told = "no column 'text'; it has 'title', 'body' (--text-key, data.text_key)"
    path = write_csv(tmp_path / "a.csv", ["title", "body"], [["a", "b"], ["c", "d"]])
    assert reasons(path) == [(2, told), (3, told)]
    table = tmp_path / "a.parquet"
    pq.write_table(pa.table({"title": ["a", "c"], "body": ["b", "d"]}), table)
    assert reasons(table) == [(1, told), (2, told)]


def test_minimind_conversations_become_their_turns(tmp_path: Path) -> None:
    rows = [["[]", "one?", "1."], [str([["a?", "it's a"], ["b?", 'say "b"']]), "c?", "c\n\nd"]]
    path = write_csv(tmp_path / "sft.csv", ["history", "q", "a"], rows)
    assert texts(path) == ["one?\n\n1.", 'a?\n\nit\'s a\n\nb?\n\nsay "b"\n\nc?\n\nc\n\nd']
    assert texts(path, text_key="a") == ["1.", "c\n\nd"]


@pytest.mark.parametrize(
    "content",
    ["__import__('os')", "[1]", "[['a']]", "{[]: 1}", "[['a', 1]]", "(" * 9000, "[['a', 'b'", "\0"],
)
def test_a_history_is_literals_and_nothing_else(content: str) -> None:
    assert read_history(content) is None


def test_parquet_columns_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"n": range(2000), "text": [f"row {n}\r\n" for n in range(2000)]})
    pq.write_table(table, path, row_group_size=300)
    taken: list[int] = []
    rows = list(parquet.read_parquet(path, "text", taken.append))
    assert rows == [Document(f"row {n}\n", str(path), n + 1) for n in range(2000)]
    assert 0.99 * path.stat().st_size < sum(taken) <= path.stat().st_size


def answers(path: Path, key: str = "text") -> list[tuple[str, str]]:
    """What the child would tell, without the child."""
    *batches, end = parquet.answers(path, key)
    assert end == {"end": True}
    return [row for batch in batches for row in batch["rows"]]


def test_parquet_cells_that_are_no_text_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    bad = pa.Array.from_buffers(pa.string(), 2, pa.array([b"a\xff", b"ok"], pa.binary()).buffers())
    table = pa.table({
        "text": ["one", None], "bad": bad, "n": [1, 2], "list": [["a"], []],
        "kind": pa.array(["x", "y"]).dictionary_encode(),
        "large": pa.array(["l", ""], pa.large_string()),
    })  # fmt: skip
    pq.write_table(table, path)
    assert answers(path) == [("one", ""), ("", "'text' is null, not a string")]
    assert answers(path, "bad") == [("", "'bad' is not UTF-8 at its byte 2"), ("ok", "")]
    assert answers(path, "n") == [("", "'n' is int64, not a string")] * 2
    assert "not a string" in answers(path, "list")[0][1]
    assert answers(path, "kind") == [("x", ""), ("y", "")]
    assert answers(path, "large") == [("l", ""), ("", "")]


def test_what_is_no_parquet_file_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", b"PAR1 nothing of the kind")
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read"):
        rows_of(path)


def test_a_killed_reader_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"text": ["one"]}), tmp_path / "a.parquet")
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with pytest.raises(EnvironmentFault, match="ended too soon"):
        rows_of(tmp_path / "a.parquet")


def test_what_lies_in_the_working_directory_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"text": ["one"]}), tmp_path / "a.parquet")
    (tmp_path / "signal.py").write_text("print('in the way')\n")
    (tmp_path / "pyarrow").mkdir()
    (tmp_path / "pyarrow" / "__init__.py").write_text("raise SystemExit(1)\n")
    monkeypatch.chdir(tmp_path)
    assert texts(tmp_path / "a.parquet") == ["one"]


def test_rows_may_be_left_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x" * 1000] * 20_000}), path, compression=None)
    rows = read_documents(path)
    assert isinstance(next(rows), Document)
    rows.close()  # pyright: ignore[reportAttributeAccessIssue]


def test_pyarrow_stays_out_of_this_process(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["one"]}), path)
    program = (
        "import sys\nfrom sparrowlm.text.documents import read_documents\n"
        f"assert [row.text for row in read_documents({str(path)!r})] == ['one']\n"
        "assert 'pyarrow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_missing_package_is_told_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="needs pyarrow, which is not installed") as caught:
        rows_of(tmp_path / "a.parquet")
    assert 'pip install "sparrowlm[parquet]"' in caught.value.fix


@HERE
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20)), st.integers(1, 9))
def test_every_format_gives_back_what_was_written(
    tmp_path: Path, contents: list[str], block: int
) -> None:
    clean = [text.replace("\r\n", "\n") for text in contents]
    array = write(tmp_path / "a.json", json.dumps([{"text": text} for text in contents]))
    table = write_csv(tmp_path / "a.csv", ["text", "n"], [[text, "1"] for text in contents])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "BLOCK", block)
        assert texts(array) == clean
        assert texts(table) == clean


def test_lines_keep_their_ends_in_pieces_of_any_size() -> None:
    whole = "a\n\nbc\nd"
    for size in (1, 2, 3, 9):
        pieces = [whole[start : start + size] for start in range(0, len(whole), size)]
        assert list(tables.Lines(pieces)) == ["a\n", "\n", "bc\n", "d"]
