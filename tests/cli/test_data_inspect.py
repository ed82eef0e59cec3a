from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparrowlm.cli import main
from sparrowlm.cli.data_inspect import bar
from support import byte_dataset


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"row {n}\n" * 9}) + "\n" for n in range(500)))
    return path


def test_a_dataset_is_shown_within_eighty_columns(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["data", "prepare", str(rows), "--tokenizer", "bytes", "--out", str(out)]) == 0
    capsys.readouterr()
    assert main(["data", "inspect", str(out), "--split", "val", "--rows", "2"]) == 0
    shown = capsys.readouterr().out
    assert "500 read, 0 rejected" in shown
    assert "length of the documents of val, in tokens" in shown
    assert "64–127" in shown
    assert shown.count("val, tokens ") == 2
    assert "[<|endoftext|>]\n── document " in shown
    assert all(len(line.rstrip()) <= 80 for line in shown.splitlines())
    again = main(["data", "inspect", str(out), "--split", "val", "--rows", "2"])
    assert (again, capsys.readouterr().out) == (0, shown)


def test_text_is_tokenized_and_shown(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(rows), "--rows", "1"]) == 0
    shown = capsys.readouterr().out
    assert "a token is a byte" in shown
    assert "row " in shown
    assert [path.name for path in rows.parent.iterdir()] == ["a.jsonl"]


def test_nanogpts_folder_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    byte_dataset(tmp_path / "data")
    assert main(["data", "inspect", str(tmp_path / "data")]) == 0
    shown = capsys.readouterr().out
    assert "unknown" in shown
    assert "no tokenizer, so no text" in shown
    assert main(["data", "inspect", str(tmp_path / "data"), "--tokenizer", "bytes"]) == 0
    assert "1.00" in capsys.readouterr().out


def test_a_split_that_is_not_there_is_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    byte_dataset(tmp_path / "data")
    (tmp_path / "data" / "val.bin").unlink()
    assert main(["data", "inspect", str(tmp_path / "data"), "--split", "val"]) == 2
    assert "has no held-out split" in capsys.readouterr().err


def test_text_has_no_held_out_split(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(rows), "--split", "val"]) == 2
    assert "a.jsonl: has no held-out split" in capsys.readouterr().err
    assert main(["data", "inspect", "--chat", str(rows), "--split", "val"]) == 2
    assert "a.jsonl: has no held-out split" in capsys.readouterr().err


def test_a_file_of_a_dataset_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    byte_dataset(tmp_path / "data")
    for name in ("train.bin", "val.bin"):
        assert main(["data", "inspect", str(tmp_path / "data" / name)]) == 2
        told = capsys.readouterr().err
        assert f"{name}: holds tokens of a dataset" in told
        assert f"name its folder: {tmp_path / 'data'}" in told


def test_bars_are_drawn_to_an_eighth() -> None:
    assert [bar(share, 2) for share in (0, 0.001, 0.25, 0.5, 1)] == ["", "▏", "▌", "█", "██"]


def test_sample_says_what_it_took(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "b.jsonl.zst"
    assert main(["data", "sample", str(rows), str(out), "--target-mb", "0.01"]) == 0
    shown = capsys.readouterr().out
    assert "of 500 lines" in shown
    assert "seed 42" in shown
    assert out.is_file()


@pytest.mark.parametrize(
    "option",
    [("--target-mb", value) for value in ("0", "-1", "nan", "inf", "1e305", "0.0000001")]
    + [("--seed", str(1 << 128)), ("--seed", str(-(1 << 127) - 1))],
)
def test_sample_refuses_what_is_no_size_and_no_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: tuple[str, str]
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    place = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--target-mb", "1"]
    assert main(["data", "sample", *place, *option]) == 2
    assert f"{option[0]}: is " in capsys.readouterr().err
    assert not (tmp_path / "b.jsonl").exists()
