"""`sparrow tokenizer train` and `inspect`, as they are typed."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from sparrowlm.cli import main
from sparrowlm.cli.cuts import cut_view, grounds, longest_view, spell
from sparrowlm.text.tokenizer import byte_tokenizer, character_tokenizer, load_tokenizer


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Some source and a few rows, two of them bad."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.py").write_text(inspect.getsource(json), encoding="utf-8")
    (folder / "b.txt").write_text("one\n<|endoftext|>\ntwo 麻雀\n", encoding="utf-8")
    rows = ['{"text": "春眠不觉晓，处处闻啼鸟。"}', '{"txet": "x"}', "", '{"text": "夜来风雨声"}']
    (folder / "c.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder


def typed(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, output, errors."""
    code = main(["tokenizer", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_train_then_inspect(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tok"
    code, told, _ = typed(
        capsys, "train", corpus, "--vocab-size", "600", "--skip-bad", "--out", out
    )
    assert code == 0
    for line in ("600 entries", "bytes per token", "2 rows rejected", "c.jsonl:2", "1 file"):
        assert line in told
    assert load_tokenizer(out).vocab_size == 600
    code, told, _ = typed(capsys, "inspect", out, corpus / "a.py", corpus / "b.txt")
    assert code == 0
    plain = " ".join(told.split())
    for part in (
        "byte-level BPE", "600, 16 of them special", "each has a token", "comes back exactly",
        "<|im_start|>", "longest tokens", "is cut",
    ):  # fmt: skip
        assert part in plain
    size = (corpus / "a.py").stat().st_size
    assert f"{size:,}" in told
    assert '"""JSON' in told.replace("│", "").replace("·", " ")


def test_inspect_without_files_shows_two_languages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    byte_tokenizer().save(tmp_path)
    code, told, _ = typed(capsys, "inspect", tmp_path)
    assert code == 0
    assert "‹e9›│‹ba›│‹bb›" in told
    assert "T│h│e│·│s" in told


def test_inspect_says_what_characters_cannot_write(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    character_tokenizer("one\n").save(tmp_path)
    code, told, _ = typed(capsys, "inspect", tmp_path, corpus / "b.txt")
    assert code == 0
    assert "only the characters it knows" in told
    assert "the vocabulary has no" in told


def test_inspect_looks_at_the_beginning_of_a_large_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    byte_tokenizer().save(tmp_path)
    large = tmp_path / "large.txt"
    large.write_bytes(b"words and words\n<|endoftext|>\n" * 200_000)
    code, told, _ = typed(capsys, "inspect", tmp_path, large, "--megabytes", "1")
    assert code == 0
    assert re.search(r"its first\s+1\.\d", " ".join(told.split()))


def test_train_characters(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tok"
    code, told, _ = typed(capsys, "train", corpus / "a.py", "--kind", "chars", "--out", out)
    assert code == 0
    assert load_tokenizer(out).kind == "chars"
    assert "1.00 bytes per token" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", "no/such.txt", "--out", "x"], "no such file or folder"),
        (["train", "CORPUS", "--out", "x"], "c.jsonl:2: no key 'text'; did you mean 'txet'?"),
        (["train", "CORPUS/a.py", "--out", "x", "--vocab-size", "100"], "take 272"),
        (["train", "CORPUS/a.py", "--out", "CORPUS"], "exists already"),
        (["inspect", "no/such"], "no such folder"),
        (["inspect", "CORPUS"], "holds no tokenizer"),
    ],
)
def test_mistakes_are_one_message_and_nothing_is_left(
    arguments: list[str], told: str, corpus: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, _, errors = typed(capsys, *(word.replace("CORPUS", str(corpus)) for word in arguments))
    assert code == 2
    assert told in errors
    assert "Traceback" not in errors
    assert sorted(tmp_path.rglob("*")) == before


def test_tokens_are_told_apart_with_and_without_colors() -> None:
    tokenizer = byte_tokenizer()
    assert cut_view(tokenizer, "a b\n\tc", ()).plain == "a│·│b│↵\n→│c│"
    styles = grounds(Console(force_terminal=True, color_system="truecolor"))
    view = cut_view(tokenizer, "ab", styles)
    assert view.plain == "ab"
    assert len({str(span.style) for span in view.spans}) == 2
    assert len(grounds(Console(force_terminal=True, color_system="standard"))) == 4
    assert grounds(Console(force_terminal=True, no_color=True)) == ()
    assert longest_view(tokenizer, 10, 200, styles).row_count == 4


def test_no_token_reaches_the_terminal_as_a_control() -> None:
    shown = [spell(bytes([byte]), dots=True) for byte in range(256)]
    assert all(char.isprintable() or char == "\n" for text in shown for char in text)
    assert spell(b"\x1b[31m", dots=False) == "\\x1b[31m"
    assert spell("é\u202e".encode(), dots=False) == "é\\u202e"
