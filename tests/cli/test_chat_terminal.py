"""`sparrow chat` in a real terminal: what a person types, interrupts and sees."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from sparrowlm.checkpoint import Checkpoint, RunFolder, State
from sparrowlm.cli.quickstart import QUESTIONS
from sparrowlm.config import ModelConfig, Recipe, TokenizerConfig, dump_recipe
from sparrowlm.text.tokenizer import make_tokenizer
from support import command
from writing_support import random_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals"),
]
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|[\x01\x02\r]")


class Terminal:
    """A command line in a pseudo-terminal."""

    def __init__(self, line: list[str]) -> None:
        import pty

        self.master, slave = pty.openpty()
        environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
        self.process = subprocess.Popen(
            line,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=environment | {"TERM": "xterm", "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"},
            preexec_fn=_controlling,
        )
        os.close(slave)
        self.raw = b""
        self.seen = 0  # characters of the text that were waited for

    @property
    def text(self) -> str:
        return ESCAPES.sub("", self.raw.decode("utf-8", errors="replace"))

    def type(self, text: str) -> None:
        os.write(self.master, text.encode("utf-8"))

    def wait_for(self, wanted: str, seconds: float = 60) -> None:
        """Read until a text came behind the one that was waited for last."""
        end = time.monotonic() + seconds
        while (at := self.text.find(wanted, self.seen)) < 0:
            assert time.monotonic() < end, f"no {wanted!r} in {self.text[self.seen :][-2000:]!r}"
            self.read()
        self.seen = at + len(wanted)

    def read(self) -> str:
        """All that was written so far, and what comes within a tenth of a second."""
        with suppress(OSError):  # the program has left
            if select.select([self.master], [], [], 0.1)[0]:
                self.raw += os.read(self.master, 65536)
        return self.text

    def read_on(self, characters: int) -> None:
        """Read until the program has written so much more."""
        have = len(self.text)
        end = time.monotonic() + 60
        while len(self.read()) < have + characters:
            assert time.monotonic() < end, "it writes no more"

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.close(self.master)


def _controlling() -> None:
    """Make standard input the terminal whose Ctrl-C this process hears. What a shell starts with
    `&` ignores it, and so does all that it starts, such as these tests."""
    import fcntl
    import termios

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that answers at great length: the tokens that end an answer are never likely."""
    text = "the sparrow is small, and no organ is missing. " * 20
    tokenizer = make_tokenizer(TokenizerConfig(vocab_size=320), lambda: [text])
    shape = ModelConfig(
        vocab_size=320, d_model=32, n_layers=1, n_heads=2, max_seq_len=32768, tie_embeddings=True
    )
    model = random_model(shape).float()
    with torch.no_grad():
        for id in tokenizer.special_ids.values():
            model.head_weight[id] = 0
    saved = RunFolder(tmp_path / "run")
    saved.create()
    recipe = dump_recipe(Recipe(stage="sft", model=model.config))
    (saved.path / "config.toml").write_text(recipe, encoding="utf-8")
    (saved.path / "tokenizer").mkdir()
    tokenizer.save(saved.path / "tokenizer")
    saved.save(Checkpoint(State(step=1), model.state_dict(), {}), keep_last=1)
    return saved.path


def test_a_person_asks_interrupts_retries_and_saves(run: Path, tmp_path: Path) -> None:
    terminal = Terminal(command("chat", run, "--device", "cpu", "--max-tokens", 100_000))
    try:
        terminal.wait_for("/help lists the commands")
        terminal.wait_for("you: ")
        terminal.type("麻雀?\n")
        terminal.read_on(200)
        terminal.type("\x03")
        terminal.wait_for("(stopped)")
        terminal.wait_for("you: ")
        terminal.type("/retry\n")
        terminal.read_on(200)
        terminal.type("\x03")
        terminal.wait_for("(stopped)")
        terminal.wait_for("you: ")
        if sys.platform == "linux":  # where readline knows what is pasted
            terminal.type("\x1b[200~/system be\nsmall\x1b[201~\n")
            terminal.wait_for("(the model is told so")
            terminal.wait_for("you: ")
            terminal.type("\x1b[A")
        terminal.type("\x1b[A\x1b[A\n")  # up to the question again
        terminal.wait_for("麻雀?")
        terminal.read_on(200)
        terminal.type("\x03")
        terminal.wait_for("(stopped)")
        terminal.wait_for("you: ")
        terminal.type(f"/save {tmp_path / 'chat.jsonl'}\n")
        terminal.wait_for("(saved to")
        terminal.wait_for("you: ")
        time.sleep(0.5)  # readline waits for keys only a moment after it has shown the prompt
        terminal.type("\x03")
        terminal.wait_for("(Ctrl-C once more leaves)")
        terminal.wait_for("you: ")
        time.sleep(0.5)
        terminal.type("\x03")
        assert terminal.process.wait(timeout=30) == 0
    finally:
        terminal.close()
    assert "Traceback" not in terminal.text
    (row,) = map(json.loads, (tmp_path / "chat.jsonl").read_text("utf-8").splitlines())
    turns = row["conversations"]
    if sys.platform == "linux":
        assert turns.pop(0) == {"role": "system", "content": "be\nsmall"}
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
    assert turns[0]["content"] == turns[2]["content"] == "麻雀?"
    assert len(turns[1]["content"]) > 100


def test_a_quickstart_ends_in_a_chat(run: Path) -> None:
    ending = "import sys, pathlib, rich.console, sparrowlm.cli.quickstart as quickstart\n"
    ending += "quickstart._ask(rich.console.Console(), pathlib.Path(sys.argv[1]))"
    terminal = Terminal([sys.executable, "-c", ending, str(run)])
    try:
        for question in QUESTIONS:
            terminal.wait_for(f"you: {question}")
        terminal.wait_for("Your turn:")
        terminal.wait_for("you: ")
        terminal.type("/help\n")
        terminal.wait_for("/retry")
        terminal.wait_for("you: ")
        terminal.type("\x04")
        terminal.wait_for(f"sparrow chat {run}")
        assert terminal.process.wait(timeout=30) == 0
    finally:
        terminal.close()
