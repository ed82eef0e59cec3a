from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparrowlm.cli import main
from sparrowlm.data.shards import open_dataset


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"row {n}\n" * 9}) + "\n" for n in range(500)))
    return path


def run(rows: Path, out: Path, *options: str) -> int:
    return main(["data", "prepare", str(rows), "--tokenizer", "bytes", "--out", str(out), *options])


def test_prepare_writes_a_dataset_and_says_what(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(rows, tmp_path / "out", "--workers", "1") == 0
    shown = capsys.readouterr().out
    dataset = open_dataset(tmp_path / "out", verify=True)
    facts = dataset.description["splits"]
    assert f"{facts['train']['tokens']:,} tokens" in shown
    assert f"{facts['val']['documents']:,} documents" in shown
    assert "held out: about 10% of the documents, by the hash of their text" in shown
    assert "MB/s" in shown
    assert str(tmp_path / "out") in shown


def test_a_tokenizer_folder_is_used(rows: Path, tmp_path: Path) -> None:
    from sparrowlm.text.tokenizer import character_tokenizer

    (tmp_path / "chars").mkdir()
    character_tokenizer("\n 0123456789orw").save(tmp_path / "chars")
    arguments = ["--tokenizer", str(tmp_path / "chars"), "--out", str(tmp_path / "out")]
    assert main(["data", "prepare", str(rows), *arguments]) == 0
    assert open_dataset(tmp_path / "out").vocab_size == 15


def test_bad_rows_stop_it_or_are_listed(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with rows.open("a") as file:
        file.write('{"body": 1}\n{"text": \n')
    assert run(rows, tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert f"error: {rows}:501: no key 'text'" in told
    assert "--skip-bad" in told
    assert not (tmp_path / "out").exists()
    assert run(rows, tmp_path / "out", "--skip-bad") == 0
    shown = capsys.readouterr().out
    assert "2 of 502 rows rejected" in shown
    assert f"{rows}:502: not JSON" in shown


def test_what_cleaning_removes_is_told(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with rows.open("a") as file:
        file.write('{"text": "ROW 7"}\n' + json.dumps({"text": "row 3\n" * 9}) + "\n")
    asked = ["--dedup", "exact", "--min-chars", "10", "--languages", "en", "latin"]
    assert run(rows, tmp_path / "out", *asked) == 0
    shown = capsys.readouterr().out
    assert "2 of 502 documents removed" in shown
    assert f"too short                    1  {rows}:501" in shown
    assert f"exact copy                   1  {rows}:502 like {rows}:4" in shown
    assert open_dataset(tmp_path / "out").description["accepted"] == 500


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--tokenizer", "/absent"], "error: /absent: no such folder"),
        (["--val-fraction", "1.5"], "error: data.val_fraction is 1.5"),
        (["--languages", "elvish"], "error: data.clean.languages: 'elvish' is not told apart"),
        (["--encoding", "utf-99"], 'error: data.encoding: "utf-99" is not an encoding'),
    ],
)
def test_mistakes_are_one_message(
    tmp_path: Path, options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("some text\n" * 10)
    assert run(tmp_path / "a.txt", tmp_path / "out", *options) == 2
    assert told in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt"]


def test_an_output_that_exists_is_refused(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    assert run(rows, tmp_path / "out") == 2
    assert "exists already" in capsys.readouterr().err
