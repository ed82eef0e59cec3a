"""`sparrow generate` on a small run: in this process where that is enough, else as a command."""

from __future__ import annotations

import io
import string
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from sparrowlm.checkpoint import Checkpoint, RunFolder, State
from sparrowlm.cli import main
from sparrowlm.cli.generate import in_order
from sparrowlm.cli.page import Page
from sparrowlm.config import ModelConfig, Recipe, dump_recipe
from sparrowlm.infer.engine import End, Piece
from sparrowlm.text.tokenizer import character_tokenizer
from support import command, run_command
from writing_support import random_model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model writes random letters, with Chinese ones in its path."""
    folder = tmp_path_factory.mktemp("runs") / "诗"
    tokenizer = character_tokenizer(string.ascii_letters + " 床前明月光一二鸟飞麻雀\n")
    shape = ModelConfig(
        vocab_size=tokenizer.vocab_size, d_model=32, n_layers=1, n_heads=2, max_seq_len=32
    )
    model = random_model(shape).float()
    shape = model.config
    saved = RunFolder(folder)
    saved.create()
    (folder / "config.toml").write_text(dump_recipe(Recipe(model=shape)), encoding="utf-8")
    (folder / "tokenizer").mkdir()
    tokenizer.save(folder / "tokenizer")
    for step in (5, 10):
        saved.save(Checkpoint(State(step=step), model.state_dict(), {}), keep_last=2)
    return folder


def _write(capsys: pytest.CaptureFixture[str], run: Path, *options: object) -> str:
    assert main(["generate", str(run), "--device", "cpu", *map(str, options)]) == 0
    return capsys.readouterr().out


def test_the_prompt_and_its_continuation_are_written(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = _write(capsys, run, "--prompt", "麻雀", "--max-tokens", 9)
    assert text.startswith("麻雀")
    assert text.endswith("\n")
    assert len(text) > len("麻雀\n")


def test_the_same_seed_writes_the_same_and_another_something_else(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [_write(capsys, run, "--max-tokens", 50, "--seed", seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_a_checkpoint_can_be_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step = run / "checkpoints" / "step-00000005"
    options = ("--prompt", "a", "--max-tokens", 20)
    assert _write(capsys, step, *options) == _write(capsys, run, *options)


def test_several_texts_are_parted_and_in_order(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = _write(capsys, run, "--prompt", "Once", "--num", 3, "--max-tokens", 20)
    first, *rest = text.split("--- ")
    assert first == ""
    assert [part.split(" ---\nOnce")[0] for part in rest] == ["1 of 3", "2 of 3", "3 of 3"]
    alone = _write(capsys, run, "--prompt", "Once", "--max-tokens", 20)
    assert rest[0].rstrip("\n") == "1 of 3 ---\n" + alone.rstrip("\n")


def test_stop_may_be_given_several_times(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    free = _write(capsys, run, "--temperature", 0, "--prompt", "a")[1:-1]
    stops = free[3], free[5:7]
    options = [part for stop in stops for part in ("--stop", stop)]
    stopped = _write(capsys, run, "--temperature", 0, "--prompt", "a", *options)
    assert stopped == "a" + free[: min(map(free.index, stops))] + "\n"


def test_a_prompt_from_standard_input_loses_the_line_end_of_the_shell(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = "\ufeff一\r\n二\n".encode()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    assert _write(capsys, run, "--prompt", "-", "--max-tokens", 1).startswith("一\n二")


def test_standard_input_that_is_not_utf8_is_an_error(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO("麻".encode("gbk"))))
    assert main(["generate", str(run), "--prompt", "-"]) == 2
    assert "standard input: is not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "nan"], "temperature is nan"),
        (["--num", "0"], "num is 0"),
        (["--stop", ""], "empty string"),
        (["--interactive", "--num", "2"], "one text"),
        (["--chat", "who?", "--num", "3"], "a question gets one answer"),
        (["--chat", "who?", "--prompt", "I"], "begins no text"),
        (["--prompt", "a" * 33], r"33 tokens"),
    ],
)
def test_a_mistake_is_one_message(
    run: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(run), *options]) == 2
    assert message in capsys.readouterr().err


def _answer(monkeypatch: pytest.MonkeyPatch, *answers: str | type[BaseException]) -> list[str]:
    """Let these be a person's answers; returns the questions asked, as they come."""
    asked: list[str] = []

    def answer(question: str = "") -> str:
        given = answers[len(asked)]
        asked.append(question)
        if isinstance(given, str):
            return given
        raise given

    monkeypatch.setattr("builtins.input", answer)
    return asked


def test_a_story_goes_on_where_it_was_and_takes_what_is_added(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy pieces, joined, are one long text; an added line changes what follows."""
    greedy = ("--temperature", 0, "--prompt", "a")
    long = _write(capsys, run, *greedy, "--max-tokens", 15)
    asked = _answer(monkeypatch, "", "", "/quit")
    story = _write(capsys, run, *greedy, "--max-tokens", 5, "--interactive")
    assert story.rstrip("\n") == long.rstrip("\n")
    assert len(asked) == 3
    _answer(monkeypatch, "Z", "/quit")
    with_line = _write(capsys, run, *greedy, "--max-tokens", 5, "--interactive")
    begun = _write(capsys, run, *greedy, "--max-tokens", 5).rstrip("\n")
    assert with_line.startswith(begun)
    full = _write(capsys, run, "--temperature", 0, "--prompt", begun + "Z", "--max-tokens", 5)
    assert with_line == begun + full.removeprefix(begun + "Z")


def test_a_story_outlives_its_context(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = _answer(monkeypatch, "", "x" * 100, "", "/quit")
    _write(capsys, run, "--interactive", "--max-tokens", 20)
    assert len(asked) == 4


def test_a_story_ends_cleanly(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _answer(monkeypatch, EOFError)
    assert _write(capsys, run, "--interactive", "--max-tokens", 5).endswith("\n")


def test_pieces_of_rows_come_in_order_and_as_soon_as_they_can() -> None:
    def piece(row: int, text: str, end: End = "") -> Piece:
        return Piece(row, 0, text, end)

    given = [
        piece(0, "a"), piece(1, "d"), piece(2, "f", "stop"),
        piece(0, "b"), piece(1, "e", "stop"), piece(0, "c", "stop"),
    ]  # fmt: skip
    taken: list[str] = []

    def watched():
        for one in given:
            taken.append(one.text)
            yield one

    shown = in_order(watched())
    assert [next(shown).text, taken] == ["a", ["a"]]
    assert [next(shown).text, taken] == ["b", ["a", "d", "f", "b"]]
    assert [one.text for one in shown] == ["c", "d", "e", "f"]


def test_a_terminal_is_never_sent_what_would_steer_it(capsys: pytest.CaptureFixture[str]) -> None:
    page = Page()
    page.write("a\x1b[2J\tb")
    assert capsys.readouterr().out == "a\x1b[2J\tb"  # a file gets the text as it is
    page.console = Console(file=io.StringIO(), force_terminal=True, color_system=None)
    page.write("a\x1b[2Jb")
    assert "\x1b[2J" not in page.console.file.getvalue()  # pyright: ignore


def test_the_command_writes_utf8_whatever_the_system_says(run: Path) -> None:
    done = run_command(
        "generate", run, "--prompt", "床前明月光", "--max-tokens", 3, PYTHONIOENCODING="gbk"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("床前明月光")


def test_the_command_and_a_story_from_a_pipe(run: Path) -> None:
    import subprocess

    done = subprocess.run(
        command("generate", run, "--interactive", "--prompt", "鸟", "--max-tokens", 3),
        input="\n飞\n".encode(),
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode("utf-8").startswith("鸟")
    assert len(done.stdout.decode("utf-8")) == 1 + 3 * 3 + 1  # what was typed is not repeated
