"""Talking: what is shown, what commands do, and what a model is asked."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from rich.console import Console

from sparrowlm.checkpoint import Checkpoint, RunFolder, State
from sparrowlm.cli import main
from sparrowlm.cli.chat import named_adapters
from sparrowlm.cli.page import Page
from sparrowlm.cli.talk import COMMANDS, Talk, converse, heed, obey
from sparrowlm.config import (
    DataConfig,
    ModelConfig,
    Recipe,
    RolloutConfig,
    TokenizerConfig,
    dump_recipe,
)
from sparrowlm.errors import ConfigError, SparrowError, UserError
from sparrowlm.infer.engine import Engine, Piece, Request
from sparrowlm.infer.sampling import Sampling
from sparrowlm.infer.talk import answer
from sparrowlm.pipeline import Loaded, converses
from sparrowlm.text.chat import ChatFormat
from sparrowlm.text.dialogue import Dialogue
from sparrowlm.text.tokenizer import Tokenizer, character_tokenizer, make_tokenizer
from support import cpu
from writing_support import random_model

SHAPE = ModelConfig(vocab_size=320, d_model=32, n_layers=1, n_heads=2, max_seq_len=160)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    text = "the sparrow is small, and no organ is missing. " * 20
    return make_tokenizer(TokenizerConfig(vocab_size=320), lambda: [text])


class Scripted:
    """A session that says what it was told to, and keeps what it was asked."""

    def __init__(self, tokenizer: Tokenizer, *answers: str) -> None:
        self.tokenizer, self.answers = tokenizer, list(answers)
        self.asked: list[str] = []
        self.cancelled: list[int] = []
        self.after: Callable[[], object] = lambda: None

    def submit(self, request: Request) -> int:
        self.asked.append(self.tokenizer.decode(request.prompt, specials=True))
        call = [{"role": "user", "content": ""}, {"role": "assistant", "content": self.answers[0]}]
        written = ChatFormat(self.tokenizer).encode(_conversation(call))
        self.ids = written.ids[written.mask].tolist()
        self.answers.pop(0)
        return len(self.asked)

    def round(self) -> list[Piece]:
        token = self.ids.pop(0)
        text = self.tokenizer.token_bytes(token).decode()
        self.after()
        return [Piece(len(self.asked), token, text, "" if self.ids else "end_of_text")]

    def cancel(self, row: int) -> None:
        self.cancelled.append(row)


def _conversation(messages: Sequence[dict[str, Any]]):
    from sparrowlm.text.turns import conversation_of

    return conversation_of(messages)


class Paper(Page):
    """A page that keeps what is written, with a person who types these lines."""

    def __init__(self, *lines: str | BaseException, person: bool = True) -> None:
        super().__init__()
        self.lines, self.person = list(lines), person
        self.file = io.StringIO()
        self.console = Console(file=self.file, force_terminal=True, color_system=None, width=500)

    @property
    def has_person(self) -> bool:
        return self.person

    @property
    def text(self) -> str:
        return self.file.getvalue()

    def ask(self, question: str) -> str:
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if isinstance(line, BaseException):
            raise line
        self.write(f"{question}{line}\n")
        return line


@pytest.fixture
def loaded(tokenizer: Tokenizer) -> Loaded:
    model = random_model(SHAPE).float()
    return Loaded(model, tokenizer, Recipe(), cpu(), 1, converses=True)


@pytest.fixture
def talk(loaded: Loaded, tokenizer: Tokenizer):
    def make(page: Page, *answers: str, **options: Any) -> tuple[Talk, Scripted]:
        made = Talk(lambda _: loaded, Sampling(), page, **options)
        script = Scripted(tokenizer, *answers)
        made.session = cast("Any", script)
        return made, script

    return make


def test_a_talk_by_turns(talk: Any) -> None:
    page = Paper("why?", "  ", "//help", "/quit", "never")
    made, script = talk(page, "so", "no help")
    converse(made)
    assert page.text == "\nyou: why?\nso\n\nyou:   \n\nyou: //help\nno help\n\nyou: /quit\n"
    first, second = script.asked
    assert (
        first == "<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert second.startswith(first + "so<|im_end|>\n<|im_start|>user\n/help<|im_end|>")
    assert script.cancelled == [1, 2]


def test_a_near_miss_is_named_and_nothing_else_ends_a_talk(talk: Any) -> None:
    page = Paper("/retyr", "/retry", "/temperature warm", "/temperature -1", "/save", "x " * 400)
    converse(talk(page)[0])
    for told in (
        "there is no /retyr; did you mean /retry?", "nothing was said", "'warm' is no number",
        "temperature is -1.0", "/save needs a name", "context 160",
    ):  # fmt: skip
        assert told in page.text


def test_where_nobody_is_asked_a_fault_ends_it(talk: Any) -> None:
    with pytest.raises(UserError, match="there is no /nonsense"):
        converse(talk(Paper("/nonsense", person=False))[0])


def test_help_tells_every_command_and_every_command_is_known(talk: Any) -> None:
    page = Paper()
    made, _ = talk(page)
    obey(made, "/help")
    for line in COMMANDS:
        name = line.split()[0]
        assert name in page.text
        assert "there is no /" not in refusal(made, name)
    assert "there is no /" in refusal(made, "/nonsense")


def refusal(talk: Talk, command: str) -> str:
    try:
        obey(talk, command)
    except UserError as fault:
        return str(fault)
    return ""


def test_retry_asks_the_same_again_with_other_draws(talk: Any) -> None:
    made, script = talk(Paper(), "one", "two", "three")
    heed(made, "a?")
    heed(made, "/retry")
    assert script.asked[0] == script.asked[1]
    assert made.number == 2
    heed(made, "b?")
    assert "two<|im_end|>" in script.asked[2]
    assert "one" not in script.asked[2]


def test_settings_between_questions(talk: Any) -> None:
    page = Paper()
    made, script = talk(page, "one", "two", "three")
    heed(made, "/system be small")
    heed(made, "/temperature 0")
    heed(made, "a?")
    assert script.asked[0].startswith("<|im_start|>system\nbe small<|im_end|>")
    assert made.sampling.temperature == 0
    heed(made, "/reset")
    heed(made, "/system")
    heed(made, "/think fold")
    heed(made, "b?")
    assert script.asked[1] == "<|im_start|>user\nb?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    with pytest.raises(UserError, match="off, fold or show"):
        heed(made, "/think loudly")


@pytest.mark.parametrize(
    ("think", "person", "shown"),
    [
        ("fold", True, r"\(thought for \d+ tokens; /think show\)\nso\n"),
        ("show", True, r"^small\?\n\nso\n"),
        ("show", False, r"^small\?\n\nso\n"),
        ("fold", False, r"^so\n"),
    ],
)
def test_thoughts_are_folded_or_shown(talk: Any, think: str, person: bool, shown: str) -> None:
    page = Paper(person=person)
    made, _ = talk(page, "<think>\nsmall?\n</think>\n\nso", think=think)
    made.answer("?")
    assert re.search(f"{shown}$", page.text)
    assert made.partner.row()["conversations"][-1]["reasoning_content"] == "small?"


def test_an_answer_that_is_stopped_is_heard_as_far_as_it_came(talk: Any) -> None:
    import signal

    page = Paper("a?", KeyboardInterrupt(), "never")
    made, script = talk(page, "the sparrow is small")
    script.after = lambda: len(script.ids) == 3 and signal.raise_signal(signal.SIGINT)
    before = signal.getsignal(signal.SIGINT)
    converse(made)
    assert "(stopped)" in page.text
    assert page.lines == ["never"], "the second Ctrl-C in a row leaves"
    heard = made.partner.row()["conversations"][-1]["content"]
    assert heard
    assert "the sparrow is small".startswith(heard)
    assert heard != "the sparrow is small"
    assert script.cancelled == [1]
    assert signal.getsignal(signal.SIGINT) is before


def test_one_interrupt_at_the_prompt_does_not_leave(talk: Any) -> None:
    page = Paper(KeyboardInterrupt(), "a?", KeyboardInterrupt(), KeyboardInterrupt(), "never")
    converse(talk(page, "b")[0])
    assert page.lines == ["never"]
    assert page.text.count("(Ctrl-C once more leaves)") == 2


def test_a_talk_is_saved_once(talk: Any, tmp_path: Path) -> None:
    made, _ = talk(Paper(), "so", "no")
    with pytest.raises(UserError, match="nothing was said"):
        obey(made, "/save", str(tmp_path / "chat"))
    heed(made, "why?")
    obey(made, "/save", str(tmp_path / "chat"))
    kept = (tmp_path / "chat.jsonl").read_bytes()
    heed(made, "why not?")
    with pytest.raises(SparrowError, match="exists already"):
        obey(made, "/save", str(tmp_path / "chat.jsonl"))
    assert (tmp_path / "chat.jsonl").read_bytes() == kept
    turns = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "so"}]
    assert json.loads(kept) == {"conversations": turns}
    (tmp_path / "file").touch()
    for name in (str(tmp_path / "file" / "chat.jsonl"), "/", "~nobody-here/x", "a\0b"):
        with pytest.raises(UserError, match="cannot be written"):
            obey(made, "/save", name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chat.jsonl", "file"]


def test_a_call_is_named(talk: Any) -> None:
    page = Paper()
    made, script = talk(page, "x")
    submit = script.submit
    tags = made.loaded.tokenizer.special_ids
    call = '{"name": "add", "arguments": {"a": 1}}'

    def calling(request: Request) -> int:
        row, encode = submit(request), made.loaded.tokenizer.encode
        body = [tags["<tool_call>"], *encode(f"\n{call}\n"), tags["</tool_call>"]]
        script.ids = [*encode("so\n"), *body, tags["<|im_end|>"]]
        return row

    script.submit = calling
    made.answer("?")
    assert page.text == 'so\ncalls add {"a": 1}\n'
    assert made.partner.turns[-1]["tool_calls"] == [{"name": "add", "arguments": '{"a": 1}'}]


def test_adapters_change_by_name_and_what_was_said_stays(
    loaded: Loaded, tokenizer: Tokenizer
) -> None:
    asked: list[str] = []

    def load(name: str) -> Loaded:
        asked.append(name)
        return loaded

    made = Talk(load, Sampling(max_tokens=3), Paper(), ("poet", "cook"))
    made.answer("a?")
    obey(made, "/adapter", "cook")
    obey(made, "/adapter", "cook")
    obey(made, "/adapter", "none")
    assert asked == ["poet", "cook", "none"]
    with pytest.raises(UserError, match="did you mean poet"):
        obey(made, "/adapter", "poett")
    assert made.partner.turns[0]["content"] == "a?"
    obey(made, "/adapter")
    assert "(adapter none; there is poet, cook)" in made.page.text  # pyright: ignore


def test_names_of_adapters() -> None:
    found = named_adapters(("poet=runs/a", "runs/b", "./x=y/c", "runs/d/adapter"))
    assert found == {
        "poet": Path("runs/a"),
        "b": Path("runs/b"),
        "c": Path("./x=y/c"),
        "d": Path("runs/d/adapter"),
    }
    for given in (("a=x", "a=y"), ("none=x",), ("a b=x",)):
        with pytest.raises(ConfigError, match="taken or none"):
            named_adapters(given)


def test_the_next_turn_reads_only_what_is_new(loaded: Loaded) -> None:
    engine = Engine(loaded.model, loaded.tokenizer, loaded.runtime, slots=1, slide=False)
    read: list[int] = []
    real = engine.decoder

    class Counting:
        """A decoder that counts what it reads."""

        def __call__(self, tokens: torch.Tensor, cache: Any):
            read.append(tokens.numel())
            return real(tokens, cache)

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    engine.decoder = cast("Any", Counting())
    session = engine.session()
    dialogue = Dialogue(ChatFormat(loaded.tokenizer), engine.context)
    greedy = Sampling(temperature=0, max_tokens=8)
    dialogue.say("the sparrow is small")
    first = len(dialogue.prompt(8))
    said = list(answer(session, dialogue, greedy))
    assert sum(read) == first + len(said) - 1
    read.clear()
    dialogue.turns[-1] = {"role": "assistant", "content": "x"}  # says less than the cache holds
    dialogue.say("no organ is missing")
    second = len(dialogue.prompt(8))
    said = list(answer(session, dialogue, greedy))
    assert sum(read) == second - first + len(said) - 1


@pytest.fixture
def folder(tokenizer: Tokenizer, tmp_path: Path):
    def make(**recipe: Any) -> Path:
        model = random_model(SHAPE).float()
        run = RunFolder(tmp_path / "run")
        run.create()
        text = dump_recipe(Recipe(model=model.config, **recipe))
        (run.path / "config.toml").write_text(text, encoding="utf-8")
        (run.path / "tokenizer").mkdir()
        tokenizer.save(run.path / "tokenizer")
        run.save(Checkpoint(State(step=1), model.state_dict(), {}), keep_last=1)
        return run.path

    return make


def type_in(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    waiting = [*lines]

    def read(*_: str) -> str:
        if not waiting:
            raise EOFError
        return waiting.pop(0)

    monkeypatch.setattr("builtins.input", read)


def test_one_question_a_line_from_a_pipe_is_as_asked_alone(
    folder: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(folder(stage="sft"))
    line = [run, "--device", "cpu", "--max-tokens", "8"]
    assert main(["generate", *line, "--chat", "what?"]) == 0
    once = capsys.readouterr().out
    assert once.strip()
    assert main(["generate", *line, "--chat", ""]) == 2
    assert "there is no question" in capsys.readouterr().err
    for command in (["chat", *line], ["generate", *line, "--chat", "", "--interactive"]):
        type_in(monkeypatch, "what?", "/reset", "", "/quit", "what?")
        assert main(command) == 0
        assert capsys.readouterr().out == once
    type_in(monkeypatch, "/nonsense", "what?")
    assert main(["chat", *line]) == 2
    assert capsys.readouterr().out == ""


def test_a_run_that_was_never_taught_to_answer_goes_on_with_the_text(
    folder: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(folder())
    line = [run, "--device", "cpu", "--max-tokens", "8", "--temperature", "0"]
    assert main(["generate", *line, "--prompt", "the "]) == 0
    whole = capsys.readouterr().out
    type_in(monkeypatch, "the ")
    assert main(["chat", *line]) == 0
    assert "the " + capsys.readouterr().out == whole
    for options, told in (
        (["--system", "s"], "--mode chat"),
        (["--think", "fold"], "--mode chat"),
        (["--context", "1"], "context is 1"),
        (["--adapter", "a=nowhere"], "nowhere"),
        (["--adapter", f"a={run}", "--adapter", "b=nowhere"], "nowhere"),
        (["--adapter", f"a={run}"], "holds no adapter"),
    ):
        assert main(["chat", *line, *options]) == 2
        assert told in capsys.readouterr().err
    type_in(monkeypatch, "/system s")
    assert main(["chat", *line]) == 2
    assert "goes on with a text" in capsys.readouterr().err
    type_in(monkeypatch, "the ")
    assert main(["chat", *line, "--mode", "chat"]) == 0
    assert "the " + capsys.readouterr().out != whole


def test_what_a_run_was_trained_on_decides_how_it_is_talked_with(
    folder: Any, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    run = RunFolder(folder())
    letters = character_tokenizer("abc")

    def decided(recipe: Recipe, by: Tokenizer = tokenizer, adapter: Path | None = None) -> bool:
        (run.path / "config.toml").write_text(dump_recipe(recipe), encoding="utf-8")
        return converses(run, by, adapter)

    text, chats = DataConfig(kind="text"), DataConfig(kind="chats")
    assert not decided(Recipe())
    assert all(decided(Recipe(stage=stage)) for stage in ("sft", "dpo", "reward", "grpo", "ppo"))
    assert not decided(Recipe(stage="grpo", rollout=RolloutConfig(chat=False)))
    assert decided(Recipe(stage="distill", data=chats))
    assert not decided(Recipe(stage="distill", data=text))
    assert not decided(Recipe(stage="sft"), letters), "it cannot write a turn"
    shutil.copytree(run.path, tmp_path / "taught")
    taught = dump_recipe(Recipe(stage="sft"))
    (tmp_path / "taught" / "config.toml").write_text(taught, encoding="utf-8")
    assert decided(Recipe(), adapter=tmp_path / "taught")
    facts = {"data": {"imported from": "Hugging Face"}}
    (run.path / "machine.json").write_text(json.dumps(facts), encoding="utf-8")
    assert decided(Recipe())
    assert not decided(Recipe(), letters)
