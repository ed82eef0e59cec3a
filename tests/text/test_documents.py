"""Readers: what comes out of files of every shape, and what is said about broken ones."""

from __future__ import annotations

import errno
import gzip
import json
import re
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparrowlm.errors import DataError
from sparrowlm.text import reading
from sparrowlm.text.documents import (
    Document,
    Rejected,
    find_inputs,
    format_of,
    has_separator,
    read_documents,
)

HERE = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def texts(path: Path, **options: str) -> list[str]:
    rows = list(read_documents(path, **options))
    assert all(isinstance(row, Document) for row in rows)
    return [row.text for row in rows if isinstance(row, Document)]


def compress(content: bytes, suffix: str) -> bytes:
    match suffix:
        case ".gz":
            return gzip.compress(content)
        case ".zst":
            return zstandard.compress(content)
        case _:
            return content


def test_plain_text_loses_mark_and_carriage_returns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\rthree\r\r\n\xe9\xba\xbb")
    assert list(read_documents(path)) == [Document("one\ntwo\rthree\r\n麻", str(path), 0)]


def test_empty_file_has_no_documents(tmp_path: Path) -> None:
    assert texts(write(tmp_path / "a.txt", b"")) == []
    assert texts(write(tmp_path / "b.jsonl", b"")) == []


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "latin-1", "utf-8"])
def test_other_encodings_by_option(tmp_path: Path, encoding: str) -> None:
    text = "é\r\nà\n" if encoding == "latin-1" else "麻雀虽小\r\n五脏俱全\n"
    path = write(tmp_path / "a.txt", text.encode(encoding))
    assert texts(path, encoding=encoding) == [text.replace("\r\n", "\n")]


@pytest.mark.parametrize(
    ("encoding", "guess"), [("gb18030", "gb18030"), ("utf-16", "utf-16"), ("latin-1", "latin-1")]
)
def test_wrong_encoding_names_file_line_and_remedy(
    tmp_path: Path, encoding: str, guess: str
) -> None:
    text = "one\ntwo\n" + ("é t\u00ff" if encoding == "latin-1" else "麻雀虽小，五脏俱全。" * 9)
    path = write(tmp_path / "a.txt", text.encode(encoding))
    line = 1 if encoding == "utf-16" else 3
    with pytest.raises(DataError, match=re.escape(f"{path}:{line}: is not utf-8")) as caught:
        list(read_documents(path))
    assert guess in caught.value.fix


def test_wrong_encoding_far_into_a_file_names_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BLOCK", 7)
    path = write(tmp_path / "a.txt", "麻雀\r\n".encode() * 100 + b"ab\xff\n")
    with pytest.raises(DataError, match=re.escape(f"{path}:101:")):
        list(read_documents(path))


def test_a_character_cut_off_at_the_end_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"x\n\xe9\xba")
    with pytest.raises(DataError, match=re.escape(f"{path}:2:")):
        list(read_documents(path))


@pytest.mark.parametrize("name", ["utf-9", "hex", "rot13", "undefined"])
def test_what_is_no_encoding_of_text_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="not an encoding"):
        list(read_documents(write(tmp_path / "a.txt", b"x"), encoding=name))


@pytest.mark.parametrize("suffix", ["txt", "csv"])
@pytest.mark.parametrize("name", ["utf-16", "UTF_32"])
def test_utf_16_without_a_byte_order_mark_wants_its_order(
    tmp_path: Path, name: str, suffix: str
) -> None:
    path = write(tmp_path / f"a.{suffix}", "text\nmoon\n".encode(f"{name}-le"))
    with pytest.raises(DataError, match=re.escape(f"{path}:1: is not {name}")) as caught:
        list(read_documents(path, encoding=name))
    assert caught.value.fix == f'name its byte order: data.encoding = "{name}-le" or "{name}-be"'
    assert "moon" in "".join(texts(path, encoding=f"{name}-le"))


def test_punycode_is_told_where_it_is_none(tmp_path: Path) -> None:
    """Of all encodings it alone has a fault without a place."""
    path = write(tmp_path / "a.txt", b"one-\x21\n")
    with pytest.raises(DataError, match="is not punycode") as caught:
        list(read_documents(path, encoding="punycode"))
    assert caught.value.fix == 'name its encoding: data.encoding = "utf-8"'


def test_a_line_of_end_of_text_parts_documents(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"one\n\n<|endoftext|>\ntwo\nmore\n<|endoftext|>\r\nthree\n")
    assert list(read_documents(path)) == [
        Document("one\n", str(path), 1),
        Document("two\nmore", str(path), 4),
        Document("three", str(path), 7),
    ]
    assert has_separator(path)


def test_end_of_text_within_a_line_parts_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"see <|endoftext|>\n <|endoftext|>\n<|endoftext|> x\n")
    assert [row.line for row in read_documents(path)] == [0]
    assert not has_separator(path)


def test_named_separator_parts_everywhere(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"a---b\n---\nc\n\n---")
    assert texts(path, separator="---") == ["a", "b", "c\n"]
    assert texts(path, separator="\n\n") == ["a---b\n---\nc", "---"]


def cut_simply(text: str) -> list[str]:
    """Documents by whole lines of the whole text."""
    lines, documents = text.split("\n"), [[]]
    for line in lines:
        if line == "<|endoftext|>":
            documents.append([])
        else:
            documents[-1].append(line)
    if len(documents) == 1:
        return [text] if text else []
    found = ["\n".join(lines) for lines in documents]
    found[-1] = found[-1].removesuffix("\n")
    return [document for document in found if document.strip()]


@HERE
@given(
    st.lists(st.sampled_from(["<|endoftext|>", "\n", "\n", "a", " ", "\r\n", "麻"]), max_size=20),
    st.integers(1, 9),
)
def test_documents_do_not_depend_on_how_a_file_is_read(
    tmp_path: Path, parts: list[str], block: int
) -> None:
    text = "".join(parts)
    path = write(tmp_path / "a.txt", text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "BLOCK", block)
        found = list(read_documents(path))
    clean = text.replace("\r\n", "\n")
    assert [row.text for row in found if isinstance(row, Document)] == cut_simply(clean)
    starts = [clean.split("\n")[row.line - 1 :] for row in found if row.line]
    rows = [row.text.split("\n") for row in found if isinstance(row, Document)]
    assert all(start[: len(row)] == row for start, row in zip(starts, rows, strict=bool(starts)))


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_json_lines_accept_and_reject_every_line(tmp_path: Path, suffix: str) -> None:
    lines = [
        b'\xef\xbb\xbf{"text": "one\\r\\ntwo"}\r',
        b"",
        b'{"txet": "x"}',
        b'{"text": 3}',
        b'{"text": null}',
        b"[1]",
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        b'{"text": "\\ud83d\\ude00"}',
        b'{"text": ""}',
        b"[" * 100_000,
        b'{"text": "cut',
    ]
    path = write(tmp_path / f"a.jsonl{suffix}", compress(b"\n".join(lines), suffix))
    rows = list(read_documents(path))
    assert [row.line for row in rows] == list(range(1, len(lines) + 1))
    assert [row.text for row in rows if isinstance(row, Document)] == ["one\ntwo", "😀", ""]
    reasons = [row.reason for row in rows if isinstance(row, Rejected)]
    expected = [
        "blank line", "did you mean 'txet'?", "number, not a string", "null, not a string",
        "JSON list, not an object", "not UTF-8 at byte 11", "surrogate", "nested", "not JSON",
    ]  # fmt: skip
    assert all(want in reason for want, reason in zip(expected, reasons, strict=True))


@HERE
@given(st.lists(st.binary(max_size=12).filter(lambda line: b"\n" not in line)), st.booleans())
def test_accepted_and_rejected_are_all_lines(
    tmp_path: Path, lines: list[bytes], ended: bool
) -> None:
    content = b"\n".join(lines) + (b"\n" if ended and lines else b"")
    count = content.count(b"\n") + (bool(content) and not content.endswith(b"\n"))
    rows = list(read_documents(write(tmp_path / "a.jsonl", content)))
    assert [row.line for row in rows] == list(range(1, count + 1))


def test_text_key_is_an_option(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", b'{"content": "x"}\n')
    assert texts(path, text_key="content") == ["x"]


def test_tang_poems_are_all_read(shared_data: Path) -> None:
    rows = list(read_documents(shared_data / "tang_poems.jsonl.zst"))
    assert len(rows) == 56_885
    assert all(isinstance(row, Document) for row in rows)


def test_several_zstd_frames_and_skippable_ones_are_read(tmp_path: Path) -> None:
    frames = zstandard.compress(b'{"text": "one"}\n{"te')
    frames += b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"skip"
    frames += zstandard.compress(b'xt": "two"}\n')
    assert texts(write(tmp_path / "a.jsonl.zst", frames)) == ["one", "two"]
    assert texts(write(tmp_path / "a.txt.gz", gzip.compress(b"a") + gzip.compress(b"b"))) == ["ab"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_truncated_archives_are_named(tmp_path: Path, suffix: str) -> None:
    rows = b"".join(json.dumps({"text": f"row {n * n}"}).encode() + b"\n" for n in range(200))
    whole = compress(rows, suffix)
    for length in (1, 5, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        path = write(tmp_path / f"a.jsonl{suffix}", whole[:length])
        with pytest.raises(DataError, match=re.escape(str(path))) as caught:
            list(read_documents(path))
        assert length == 1 or "ends in the middle" in caught.value.what


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_damaged_archives_are_named(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a.jsonl{suffix}", b"this is no archive at all")
    with pytest.raises(DataError, match="is damaged"):
        list(read_documents(path))


def test_memory_stays_bounded_over_a_large_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BLOCK", 1 << 16)
    stories = [f"{number:x}" * 250 for number in range(0x1000, 0x3800)]
    lines = [json.dumps({"text": story}) for story in stories]
    rows = zstandard.compress("\n".join(lines).encode())
    plain = "\n<|endoftext|>\n".join(stories).encode()
    assert len(plain) > 10e6
    for path in (write(tmp_path / "a.jsonl.zst", rows), write(tmp_path / "a.txt", plain)):
        tracemalloc.start()
        assert sum(1 for _ in read_documents(path)) == len(stories)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 4e6


def test_find_inputs_takes_folders_globs_and_files_once(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/y.jsonl", "a/.hidden", ".git/config", "c.jsonl.zst"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\0")
    names = [str(path.relative_to(tmp_path)) for path in find_inputs([str(tmp_path)])]
    assert names == ["a/y.jsonl", "a/z.md", "b.txt", "c.jsonl.zst"]
    twice = find_inputs([str(tmp_path / "b.txt"), str(tmp_path / "*.txt"), str(tmp_path)])
    assert [path.name for path in twice] == ["b.txt", "y.jsonl", "z.md", "c.jsonl.zst"]
    assert find_inputs([str(tmp_path / "picture.png")]) == [tmp_path / "picture.png"]
    assert [path.name for path in find_inputs([str(tmp_path / "**" / "*.md")])] == ["z.md"]


def test_find_inputs_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "poems.txt").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    for path, told in (
        ("peoms.txt", "did you mean .*poems.txt"),
        ("empty", "no text file"),
        ("*.md", "matches no file"),
        ("a/b/c", "no such file or folder"),
    ):
        with pytest.raises(DataError, match=told):
            find_inputs([str(tmp_path / path)])
    with pytest.raises(DataError, match="no input"):
        find_inputs([])


@pytest.mark.parametrize("method", ["iterdir", "is_file"])
def test_a_folder_that_may_not_be_read_is_named(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "a.txt").write_bytes(b"x")
    (tmp_path / "shut").mkdir()
    own = getattr(Path, method)

    def asked(path: Path) -> object:  # root, who may run this, is let into every folder
        if "shut" in path.parts:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return own(path)

    monkeypatch.setattr(Path, method, asked)
    with pytest.raises(DataError, match=r"shut.*cannot be looked into: Permission denied"):
        find_inputs([str(tmp_path)])
    with pytest.raises(DataError, match=r"shut.*cannot be looked into"):
        find_inputs([str(tmp_path / "shut" / "b.txt"), str(tmp_path / "shut")])


def test_names_say_how_a_file_is_read() -> None:
    names = ["a.jsonl", "a.JSONL.GZ", "a.b.ndjson.zst", "a.json", "a.csv.gz", "a.parquet", "a.h5",
             "a.txt.gz", "a.py", "a"]  # fmt: skip
    assert list(map(format_of, names)) == [
        "lines", "lines", "lines", "array", "csv", "parquet", "tokens", "plain", "plain", "plain",
    ]  # fmt: skip
