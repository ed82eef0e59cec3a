"""What a person reads and types while a model writes."""

from __future__ import annotations

import importlib.util
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from sparrowlm.infer.talk import Spoken

Thinking = Literal["off", "fold", "show"]
QUOTES = '"""'
BOLD, PLAIN = "\x01\x1b[1m\x02", "\x01\x1b[0m\x02"  # readline does not count what 1 and 2 enclose


class Page:
    """Standard output, and what is typed below it. A terminal gets colors, and never a control
    character that a model wrote; anything else gets the text as it is."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self.at_line_start = True

    @property
    def has_person(self) -> bool:
        """Somebody types and reads; otherwise lines come from a pipe or a file."""
        return sys.stdin.isatty() and self.console.is_terminal

    def write(self, text: str, style: str = "") -> None:
        """Show text at once, without a line end of its own."""
        from sparrowlm.report.words import printable

        if not text:
            return
        if self.console.is_terminal:
            self.console.print(Text(printable(text), style), end="", soft_wrap=True)
        else:
            sys.stdout.write(text)
        sys.stdout.flush()
        self.at_line_start = text.endswith("\n")

    def note(self, text: str) -> None:
        """Say something that is no part of what the model writes, on lines of its own."""
        if self.has_person:
            self.end_line()
            self.write(f"{text}\n", "dim")
        else:
            if self.console.is_terminal:
                self.end_line()
            print(text, file=sys.stderr, flush=True)

    def end_line(self) -> None:
        """Start a new line, unless at the start of one."""
        if not self.at_line_start:
            self.write("\n")

    def ask(self, question: str) -> str:
        '''What a person types: a line without its end, or lines between two `"""`. From a pipe
        always one line, and nothing is shown.

        Raises:
            EOFError: there is no more.
            DataError: it is not UTF-8.
        '''
        if not self.has_person:
            return self._piped()
        first = self._typed(question)
        if not first.startswith(QUOTES):
            return first
        lines = [first.removeprefix(QUOTES)]
        while not lines[-1].endswith(QUOTES):
            lines.append(self._typed("… "))
        return "\n".join(lines).removesuffix(QUOTES).strip("\n")

    def _typed(self, question: str) -> str:
        self.at_line_start = False
        if importlib.util.find_spec("readline"):  # Windows' console has a history of its own
            import readline  # from here on `input` edits lines and recalls them

            # libedit, which stands in for readline on a Mac, knows neither.
            if "libedit" not in (readline.__doc__ or ""):
                readline.parse_and_bind("set enable-bracketed-paste on")  # lines pasted are one
                question = f"{BOLD}{question}{PLAIN}" if self.console.color_system else question
        try:
            answer = input(question)
        except UnicodeDecodeError as fault:
            raise _no_text("what was typed", fault) from fault
        self.at_line_start = True
        return answer

    def _piped(self) -> str:
        reconfigure = getattr(sys.stdin, "reconfigure", None)
        if reconfigure is not None and (
            (sys.stdin.encoding.lower(), sys.stdin.errors) != ("utf-8", "strict")
        ):
            reconfigure(encoding="utf-8", errors="strict")  # possible before the first line only
        try:
            return input().removeprefix("\ufeff")
        except UnicodeDecodeError as fault:
            raise _no_text("standard input", fault) from fault


def _no_text(what: str, fault: UnicodeDecodeError) -> Exception:
    from sparrowlm.errors import DataError

    return DataError(f"is not UTF-8: {fault.reason} at byte {fault.start}", where=what)


class View:
    """An answer on the page: thoughts are dim or folded, calls are named."""

    def __init__(self, page: Page, think: Thinking) -> None:
        self.page, self.think = page, think
        self.count = 0  # tokens of the thought
        self.kind = ""
        self.status = page.console.status("") if page.has_person and think != "show" else None

    def show(self, spoken: Spoken) -> None:
        """Show what a token adds."""
        if self.kind in ("", "thinking") and spoken.token is not None:
            self.count += 1
        for kind, text in spoken.parts:
            if self.kind == "thinking" != kind:
                self._end_thought()
            self.kind = kind
            match kind:
                case "content":
                    self.page.write(text)
                case "tool_call":
                    self._call(text)
                case "thinking" if self.think == "show":
                    self.page.write(text, "dim")
                case "thinking" if self.status is not None:
                    self.status.update(f"[dim]thinking, {self.count} tokens[/]")
                    self.status.start()

    def close(self) -> None:
        """Nothing more comes."""
        if self.kind == "thinking" and self.status is not None:
            self._end_thought()

    def _end_thought(self) -> None:
        if self.status is not None:
            self.status.stop()
            self.page.note(f"(thought for {self.count} tokens; /think show)")
        elif self.think == "show":
            self.page.end_line()
            self.page.write("\n")

    def _call(self, text: str) -> None:
        from sparrowlm.text.reply import CALL_CLOSES, CALL_OPENS, parse_tool_call

        call = parse_tool_call(text)
        self.page.end_line()
        if self.page.has_person and call is not None:
            self.page.write(f"calls {call[0]} {call[1]}\n", "dim")
        else:
            self.page.write(f"{CALL_OPENS}\n{text}\n{CALL_CLOSES}\n")


@contextmanager
def interruptible(active: bool = True) -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C came, as a question to ask between two tokens: the token under way is
    finished, so that nothing is left half-done. A second one ends at once.

    Args:
        active: False leaves Ctrl-C as it is.
    """
    heard: list[int] = []

    def hear(number: int, frame: object) -> None:
        if heard:
            raise KeyboardInterrupt
        heard.append(number)

    if not active:
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, hear)
    try:
        yield lambda: bool(heard)
    finally:
        signal.signal(signal.SIGINT, before)
