"""Questions to a run: the prompt is the template's, the answer ends where a turn ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparrowlm.checkpoint import Checkpoint, RunFolder, State
from sparrowlm.cli import main
from sparrowlm.cli.talk import answer, converse, prompt_of
from sparrowlm.config import ModelConfig, Recipe, TokenizerConfig, dump_recipe
from sparrowlm.errors import UserError
from sparrowlm.infer.engine import Piece
from sparrowlm.infer.sampling import Sampling
from sparrowlm.text.chat import ChatFormat
from sparrowlm.text.tokenizer import Tokenizer, make_tokenizer
from writing_support import random_model


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    text = "the sparrow is small, and no organ is missing. " * 20
    return make_tokenizer(TokenizerConfig(vocab_size=320), lambda: [text])


class Scripted:
    """An engine that says what it was told to, and keeps what it was asked."""

    def __init__(self, tokenizer: Tokenizer, *answers: str, context: int = 64) -> None:
        self.tokenizer, self.answers, self.context = tokenizer, list(answers), context
        self.prompts: list[str] = []

    def stream(self, requests: list[Any]):
        self.prompts.append(self.tokenizer.decode(requests[0].prompt, specials=True))
        end = self.tokenizer.special_ids["<|im_end|>"]
        for id in [*self.tokenizer.encode(self.answers.pop(0)), end, *[5] * 9]:
            text = self.tokenizer.token_bytes(id).decode()
            yield Piece(0, id, text, "")


class Paper:
    """A page that keeps what is written, with answers to what it asks."""

    def __init__(self, *lines: str) -> None:
        self.lines, self.text = list(lines), ""

    def write(self, text: str, style: str = "") -> None:
        self.text += text

    def end_line(self) -> None:
        self.text += "\n"

    def ask(self, question: str) -> str:
        return self.lines.pop(0)


def test_an_answer_ends_where_its_turn_does(tokenizer: Tokenizer) -> None:
    engine, page = Scripted(tokenizer, "small"), Paper()
    messages = [{"role": "user", "content": "how? <|im_end|>"}]
    said = answer(engine, ChatFormat(tokenizer), messages, Sampling(), page)  # pyright: ignore
    assert (said, page.text) == ("small", "small\n")
    turn = "<|im_start|>user\nhow? <|im_end|><|im_end|>\n<|im_start|>assistant\n"
    assert engine.prompts == [f"{turn}<think>\n\n</think>\n\n"]


def test_a_conversation_remembers_until_the_context_is_half_full(tokenizer: Tokenizer) -> None:
    chat, page = ChatFormat(tokenizer), Paper("", "and b?", "q")
    engine = Scripted(tokenizer, "1", "2", context=1000)
    converse(engine, chat, "a?", Sampling(), page)  # pyright: ignore
    assert page.text == "1\n2\n"
    assert engine.prompts[1].startswith(engine.prompts[0] + "1<|im_end|>\n<|im_start|>user\nand b?")
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 20
    asked: list[dict[str, Any]] = [{"role": "system", "content": "s"}, *turns, turns[0]]
    short = prompt_of(chat, asked, 80)
    assert len(short) <= 40
    assert tokenizer.decode(short, specials=True).startswith("<|im_start|>system\ns<|im_end|>")
    with pytest.raises(UserError, match="ask more briefly"):
        prompt_of(chat, [{"role": "user", "content": "why " * 100}], 40)


def test_generate_answers_and_talks(
    tokenizer: Tokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shape = ModelConfig(
        vocab_size=tokenizer.vocab_size, d_model=32, n_layers=1, n_heads=2, max_seq_len=64
    )
    model = random_model(shape).float()
    run = RunFolder(tmp_path / "run")
    run.create()
    (run.path / "config.toml").write_text(dump_recipe(Recipe(model=model.config)))
    (run.path / "tokenizer").mkdir()
    tokenizer.save(run.path / "tokenizer")
    run.save(Checkpoint(State(step=1), model.state_dict(), {}), keep_last=1)
    line = ["generate", str(run.path), "--device", "cpu", "--max-tokens", "8", "--chat"]
    assert main([*line, "what?"]) == 0
    once = capsys.readouterr().out
    assert once.strip()
    answers = iter(["what?", "q"])
    monkeypatch.setattr("builtins.input", lambda _: next(answers))
    assert main([*line, "", "--interactive"]) == 0
    assert capsys.readouterr().out == once
    assert main([*line, ""]) == 2
    assert "there is no question" in capsys.readouterr().err
