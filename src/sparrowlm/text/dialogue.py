"""What was said so far, cut to what fits a model's context: a conversation, or one text that goes
on.

Both are asked the same things, so that whoever talks need not know which it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from sparrowlm.errors import UserError
from sparrowlm.text.chat import ChatFormat
from sparrowlm.text.reply import Fragment, ReplyReader, message_from
from sparrowlm.text.turns import Message, message_of


class Reader(Protocol):
    """From tokens and their text to the parts of an answer."""

    def push(self, token: int, text: str) -> list[Fragment]:
        """What is certain now."""
        ...

    def finish(self) -> list[Fragment]:
        """What is held, at the end."""
        ...


class Partner(Protocol):
    """What `Dialogue` and `Story` have in common."""

    context: int
    """Ids that a prompt and what follows it may have together."""
    forgotten: int
    """How much the last prompt left out."""
    unit: str
    """What `forgotten` counts."""

    @property
    def ends(self) -> frozenset[int]:
        """Ids that end an answer."""
        ...

    @property
    def empty(self) -> bool:
        """Nothing was said."""
        ...

    def say(self, text: str) -> None:
        """Take in what the person says."""
        ...

    def prompt(self, room: int) -> list[int]:
        """What the answer is written behind, with room for so many ids of it."""
        ...

    def reader(self, prompt: Sequence[int]) -> Reader:
        """What takes its answer apart."""
        ...

    def hear(self, tokens: Sequence[int], fragments: Iterable[Fragment]) -> None:
        """Take in the answer."""
        ...

    def again(self) -> bool:
        """Take the last answer back; whether there is something to be asked again."""
        ...

    def reset(self) -> None:
        """Forget all that was said."""
        ...

    def row(self) -> dict[str, Any]:
        """A line of a file of training data."""
        ...


class Dialogue:
    """Questions and answers by turns.

    Args:
        chat: how turns become ids.
        context: ids that a prompt and its answer may have together.
        system: what the model is told at the head; empty: nothing.
        thinking: let answers begin with a thought.

    >>> dialogue = Dialogue(chat, context=512)
    >>> dialogue.say("What is a sparrow?")
    >>> ids = dialogue.prompt(room=100)
    >>> dialogue.hear([…], [Fragment("content", "A bird.")])
    """

    unit = "turns"

    def __init__(
        self, chat: ChatFormat, context: int, system: str = "", thinking: bool = False
    ) -> None:
        self.chat, self.context = chat, context
        self.system, self.thinking = system, thinking
        self.turns: list[Message] = []
        self.forgotten = 0
        self._again = ""  # a question that got no answer

    @property
    def ends(self) -> frozenset[int]:
        """Ids that end an answer."""
        return self.chat.end_ids

    @property
    def empty(self) -> bool:
        """Nothing was said."""
        return not self.turns

    def say(self, text: str) -> None:
        """Add a question.

        Raises:
            DataError: it holds what is no character.
        """
        self.turns.append(message_of({"role": "user", "content": text}))

    def prompt(self, room: int) -> list[int]:
        """The ids of the turns and an answer's beginning. Where they and the answer would not fit,
        the oldest questions leave with their answers.

        Raises:
            UserError: the last question alone fills the context; it is taken back.
        """
        while True:
            turns = self._head + self.turns[self.forgotten :]
            ids = self.chat.prompt_ids(turns, thinking=self.thinking)
            if len(ids) + room <= self.context or self.forgotten + 1 >= len(self.turns):
                break
            self.forgotten += 2
        if len(ids) < self.context:
            return ids
        self.turns.pop()
        self.forgotten = min(self.forgotten, len(self.turns))
        whose = "the question and the system prompt have" if self.system else "the question has"
        raise UserError(
            f"{whose} {len(ids)} tokens, and the model's context {self.context}",
            fix="ask more briefly, or train with a larger model.max_seq_len",
        )

    def reader(self, prompt: Sequence[int]) -> ReplyReader:
        """What takes an answer apart into thought, content and calls."""
        return ReplyReader(self.chat.tokenizer, prompt)

    def hear(self, tokens: Sequence[int], fragments: Iterable[Fragment]) -> None:
        """Add the answer; a question to which nothing was said is taken back."""
        answer = message_from(fragments)
        if len(answer) == 2 and not answer["content"]:
            self._again = self.turns.pop()["content"]
        else:
            self._again = ""
            self.turns.append(answer)

    def again(self) -> bool:
        """Take the last answer back; whether a question waits for another."""
        if self._again:
            self.say(self._again)
            self._again = ""
            return True
        if self.turns:
            self.turns.pop()
        return bool(self.turns)

    def reset(self) -> None:
        """Forget the turns; the system prompt stays."""
        self.turns, self.forgotten, self._again = [], 0, ""

    def row(self) -> dict[str, Any]:
        """All turns, forgotten ones too, as `text.conversations.chat_of` reads them."""
        return {"conversations": self._head + self.turns}

    @property
    def _head(self) -> list[Message]:
        return [message_of({"role": "system", "content": self.system})] if self.system else []


class Story:
    """One text that a person and a model write by turns.

    Args:
        encode: the ids of a text that is not empty.
        begin: the ids of an empty one.
        context: ids that a prompt and what follows it may have together.
    """

    unit = "tokens"

    def __init__(
        self, encode: Callable[[str], list[int]], begin: Sequence[int], context: int
    ) -> None:
        self._encode, self._begin, self.context = encode, list(begin), context
        self.forgotten = 0
        self._ids: list[int] = []
        self._text = ""
        self._before = (0, "")  # the last answer: the ids before it, and the text
        self._answered = False

    ends: frozenset[int] = frozenset()

    @property
    def empty(self) -> bool:
        """Nothing was written."""
        return not self._text

    def say(self, text: str) -> None:
        """Add words to it; none lets it go on as it is."""
        self._ids += self._encode(text) if text else []
        self._text += text
        self._before = (len(self._ids), self._text)

    def prompt(self, room: int) -> list[int]:
        """Its end, as much as leaves room."""
        most = max(self.context - room, 1)
        self.forgotten = max(0, len(self._ids) - most)
        return self._ids[self.forgotten :] or self._begin

    def reader(self, prompt: Sequence[int]) -> PlainReader:
        """All that is written is content."""
        return PlainReader()

    def hear(self, tokens: Sequence[int], fragments: Iterable[Fragment]) -> None:
        """Add what was written."""
        self._ids += tokens
        self._text += "".join(part.text for part in fragments)
        self._answered = True

    def again(self) -> bool:
        """Take the last piece back, to be written anew."""
        count, self._text = self._before
        del self._ids[count:]
        return self._answered

    def reset(self) -> None:
        """Begin another."""
        self._ids, self._text, self.forgotten = [], "", 0
        self._before, self._answered = (0, ""), False

    def row(self) -> dict[str, Any]:
        """The whole text, as documents are read."""
        return {"text": self._text}


class PlainReader:
    """A `Reader` of text without parts."""

    def push(self, token: int, text: str) -> list[Fragment]:
        """The text."""
        return [Fragment("content", text)] if text else []

    def finish(self) -> list[Fragment]:
        """Nothing is held."""
        return []
