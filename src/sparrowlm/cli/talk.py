"""Talking with a model: what is shown of an answer, and the commands between two questions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sparrowlm import files
from sparrowlm.cli.page import Page, Thinking, View, interruptible
from sparrowlm.config.load import near_miss
from sparrowlm.errors import RunError, SparrowError, UserError

if TYPE_CHECKING:
    from sparrowlm.infer.engine import Engine, Session
    from sparrowlm.infer.sampling import Sampling
    from sparrowlm.pipeline import Loaded
    from sparrowlm.text.dialogue import Partner

Mode = Literal["auto", "chat", "text"]
NO_ADAPTER = "none"
CONTEXT = 8192  # a cache for all that an imported model may see can be larger than the model

COMMANDS = {
    "/help": "these lines",
    "/reset": "forget what was said; the system prompt stays",
    "/retry": "take the last answer back and draw another",
    "/system TEXT": "tell the model who it is; without TEXT, nothing",
    "/temperature X": "0 always takes the likeliest token; above 1 is wilder than the model",
    "/think off|fold|show": "answer at once, or think first and show that in one line or whole",
    "/adapter NAME": "go on with other changes (--adapter); none: with the run alone",
    "/save FILE": "write what was said as a line of training data",
    "/quit": "leave; Ctrl-D does too",
}
"""What may be typed instead of a question, and what it does."""
HINTS = """
Lines between two lines of \"\"\" are one question. One that begins with / is typed with //.
Ctrl-C stops an answer. The arrow keys bring back what was typed."""


@dataclass
class Talk:
    """A model to talk with, and how.

    Args:
        load: the run with an adapter, which is told by its name.
        adapters: the names.
        sampling: of the answers.
        page: where they are shown.
        mode: by turns, or one text that goes on; auto: as the run was taught.
        think: whether an answer begins with a thought, and how much of it is shown.
        system: what a model is told at the head of a conversation.
        context: tokens that it sees at most; the model's own where that is less.
    """

    load: Callable[[str], Loaded]
    sampling: Sampling
    page: Page
    adapters: tuple[str, ...] = ()
    mode: Mode = "auto"
    think: Thinking = "off"
    system: str = ""
    context: int = CONTEXT
    number: int = 0  # of the answer: each has draws of its own
    interrupted: Callable[[], bool] = lambda: False  # an answer under way is to stop
    adapter: str = field(init=False)
    loaded: Loaded = field(init=False)
    session: Session = field(init=False)
    partner: Partner = field(init=False)

    def __post_init__(self) -> None:
        engine = self.take(self.adapters[0] if self.adapters else NO_ADAPTER)
        if self.mode == "auto":
            self.mode = "chat" if self.loaded.converses else "text"
        self.partner = self._partner(engine)

    def take(self, adapter: str) -> Engine:
        """Load the model with an adapter, and begin with an empty cache."""
        from sparrowlm.infer.engine import Engine

        self.loaded = loaded = self.load(adapter)
        engine = Engine(loaded.model, loaded.tokenizer, loaded.runtime, slots=1, slide=False)
        self.context = min(self.context, engine.context)
        self.session, self.adapter = engine.session(max_len=self.context), adapter
        return engine

    def _partner(self, engine: Engine) -> Partner:
        from sparrowlm.text.chat import ChatFormat
        from sparrowlm.text.dialogue import Dialogue, Story

        if self.mode == "text":
            if self.system or self.think != "off":
                raise UserError(
                    "a model that goes on with a text has neither system prompt nor thoughts",
                    fix="leave out --system and --think, or add --mode chat",
                )
            return Story(engine.prompt, engine.prompt(""), self.context)
        chat = ChatFormat(self.loaded.tokenizer)
        return Dialogue(chat, self.context, self.system, self.think != "off")

    def answer(self, words: str) -> None:
        """Answer, and show it as it comes.

        Raises:
            UserError: the words alone fill the context.
        """
        self.partner.say(words)
        self.speak()

    def speak(self) -> None:
        """Let the model say what comes next."""
        from contextlib import closing

        from sparrowlm.infer.talk import answer

        forgotten, view, end = self.partner.forgotten, View(self.page, self.think), ""
        spoken = answer(self.session, self.partner, self.sampling, self.number)
        self.number += 1
        with closing(spoken), closing(view):
            for one in spoken:
                if self.partner.forgotten > forgotten:
                    forgotten = self.partner.forgotten
                    self.page.note(f"(the oldest {forgotten} {self.partner.unit} are forgotten)")
                view.show(one)
                end = one.end
                if self.interrupted() and not end:
                    end = "stopped"
                    break
        if self.mode == "chat":  # the pieces of a story are one text
            self.page.end_line()
        if told := self._ending(end):
            self.page.note(told)

    def _ending(self, end: str) -> str:
        """What a person should hear of how an answer ended."""
        match end, self.mode:
            case "stopped", _:
                return "(stopped)"
            case "context", "chat":
                return f"(the context of {self.context} tokens is full)"
            case "max_tokens", "chat":
                return f"(cut at {self.sampling.max_tokens} tokens: --max-tokens)"
            case "end_of_text", "text":
                return "(here the text ends; what follows is another)"
        return ""


def converse(talk: Talk, words: str | None = None) -> None:
    """Answer, ask, and so on, until the person leaves: by a command, by ending the input, or by
    Ctrl-C twice.

    Args:
        talk: with whom.
        words: said already.

    Raises:
        SparrowError: what cannot be answered, where nobody is there to ask otherwise.
    """
    if words is not None and words.startswith("/"):
        words = f"/{words}"  # no command
    goes_on, stopped = True, False
    while goes_on:
        try:
            typed = ask(talk, stopped) if words is None else words
            with interruptible(talk.page.has_person) as talk.interrupted:
                goes_on = heed(talk, typed)
                stopped = talk.interrupted()
        except EOFError:
            goes_on = False
        except SparrowError as fault:
            if not talk.page.has_person:
                talk.page.end_line()
                raise
            talk.page.note(f"error: {fault}")
        words = None
    talk.page.end_line()


def ask(talk: Talk, stopped: bool) -> str:
    """The next words. Ctrl-C that no answer hears is for the program: the second in a row ends it.

    Args:
        talk: with whom.
        stopped: the first one stopped an answer.

    Raises:
        EOFError: there are none.
    """
    if not talk.page.has_person:
        return talk.page.ask("")
    while True:
        talk.page.end_line()
        talk.page.write("\n")
        try:
            return talk.page.ask("you: " if talk.mode == "chat" else "text: ")
        except KeyboardInterrupt:
            if stopped:
                raise EOFError from None
            stopped = True
            talk.page.note("(Ctrl-C once more leaves)")


def heed(talk: Talk, words: str) -> bool:
    """Answer, or do what a command says; whether the talk goes on.

    Raises:
        UserError: no such command, or one that cannot be done.
    """
    if words.startswith("/") and not words.startswith("//"):
        return obey(talk, *words.split(maxsplit=1))
    words = words.removeprefix("/") if words.startswith("//") else words
    if words.strip() or talk.mode == "text":
        talk.answer(words)
    return True


def obey(talk: Talk, command: str, rest: str = "") -> bool:
    """Do what a command says; whether the talk goes on.

    Raises:
        UserError: there is none of this name, or it cannot be done.
    """
    page, rest = talk.page, rest.strip()
    match command:
        case "/quit":
            return False
        case "/help":
            width = max(map(len, COMMANDS))
            lines = [f"{name:<{width}}  {meaning}" for name, meaning in COMMANDS.items()]
            page.note("\n".join([*lines, HINTS]))
        case "/reset":
            talk.partner.reset()
            page.note("(all that was said is forgotten)")
        case "/retry":
            retry(talk)
        case "/system":
            system(talk, rest)
        case "/temperature":
            temperature(talk, rest)
        case "/think":
            think(talk, rest)
        case "/adapter":
            adapter(talk, rest)
        case "/save":
            save(talk, rest)
        case _:
            names = [name.split()[0] for name in COMMANDS]
            fix = "/help says what each does; a question that begins with / is typed with //"
            raise UserError(f"there is no {command}{near_miss(command, names)}", fix=fix)
    return True


def retry(talk: Talk) -> None:
    """Another answer to the same words."""
    if not talk.partner.again():
        raise UserError("nothing was said that could be answered again")
    if talk.sampling.temperature == 0:
        talk.page.note("(temperature 0 always gives the likeliest answer)")
    talk.speak()


def system(talk: Talk, text: str) -> None:
    """Another system prompt, or none."""
    talk.system = _dialogue(talk, "/system").system = text
    talk.page.note("(the model is told so from now on)" if text else "(no system prompt)")


def temperature(talk: Talk, text: str) -> None:
    """Another temperature, or say what it is."""
    if text:
        try:
            talk.sampling = replace(talk.sampling, temperature=float(text))
        except ValueError as fault:
            raise UserError(f"{text!r} is no number", fix="/temperature 0.7") from fault
    talk.page.note(f"(temperature {talk.sampling.temperature:g})")


def think(talk: Talk, text: str) -> None:
    """Whether answers begin with a thought, and how it is shown."""
    dialogue = _dialogue(talk, "/think")
    match text:
        case "off" | "fold" | "show":
            talk.think, dialogue.thinking = text, text != "off"
        case "":
            pass
        case _:
            raise UserError(f"/think is off, fold or show, not {text!r}")
    talk.page.note(f"(think {talk.think})")


def adapter(talk: Talk, name: str) -> None:
    """Go on with other changes; what was said stays."""
    names = (NO_ADAPTER, *talk.adapters)
    if name and name not in names:
        fix = "" if talk.adapters else "start with --adapter NAME=PATH, once for each"
        raise UserError(f"there is no adapter {name!r}{near_miss(name, names)}", fix=fix)
    if name and name != talk.adapter:
        talk.take(name)
    others = ", ".join(other for other in names if other != talk.adapter)
    talk.page.note(f"(adapter {talk.adapter}" + (f"; there is {others})" if others else ")"))


def save(talk: Talk, name: str) -> None:
    """Write what was said as one line of JSON, which `sparrow train` reads."""
    if not name:
        raise UserError("/save needs a name", fix="/save chat.jsonl")
    if talk.partner.empty:
        raise UserError("nothing was said that could be saved")
    try:
        path = Path(name).expanduser()
        path = path if path.suffix == ".jsonl" else path.with_name(f"{path.name}.jsonl")
        if path.exists():
            raise RunError("exists already", where=str(path), fix="choose another name")
        files.write_text(path, json.dumps(talk.partner.row(), ensure_ascii=False) + "\n")
    except (OSError, ValueError, RuntimeError) as fault:  # no folder, no name, no such home
        raise UserError(f"cannot be written: {fault}", where=name) from fault
    talk.page.note(f"(saved to {path})")


def _dialogue(talk: Talk, command: str):
    """The conversation, where it is one."""
    from sparrowlm.text.dialogue import Dialogue

    if not isinstance(talk.partner, Dialogue):
        raise UserError(
            f"{command} is for a model that answers, and this one goes on with a text",
            fix="start with --mode chat",
        )
    return talk.partner
