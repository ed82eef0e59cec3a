"""What is asked of the engine, what it answers, and a completion between the two."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal, NamedTuple

from sparrowlm.infer.sampling import Sampling
from sparrowlm.infer.stops import StopStrings
from sparrowlm.text.stream import TextStream
from sparrowlm.text.tokenizer import Tokenizer

End = Literal["", "end_of_text", "stop", "max_tokens", "context"]


class Request(NamedTuple):
    """One completion to write."""

    prompt: Sequence[int]
    """At least one id; `Engine.prompt` makes them of a text."""
    sampling: Sampling
    sample: int = 0
    """Which of the completions of one prompt: each has draws of its own."""
    ends: frozenset[int] = frozenset()
    """Ids that end it beside the end of text, such as that of an assistant's turn."""
    logprobs: int | None = None
    """How many of the likeliest tokens every piece names beside its own, which has its
    log-probability then even for 0. None: no log-probabilities, which cost a pass over the
    logits."""


class Piece(NamedTuple):
    """What a round adds to one completion."""

    row: int
    """Which request: the number that `submit` gave, or its place in `stream`'s list."""
    token: int
    """The id, as drawn."""
    text: str
    """What may be shown now: whole characters, and nothing of a stop string."""
    end: End
    """Empty while it goes on, else why this piece is the last."""
    logprob: float | None = None
    """Of the token in nats, in the model's own distribution: before temperature, filters and
    penalty."""
    top: tuple[tuple[int, float], ...] = ()
    """(id, nats) of the likeliest tokens in that distribution, likeliest first."""


class Completion:
    """A completion under way.

    Args:
        row: which request.
        request: what is asked; its prompt is copied, so that a caller may append what it gets to
            the list that it gave.
        tokenizer: None where only ids are known.
        eot_id: ends it.
        limit: how many ids, prompt included, a model can have read; None where the context
            slides.
    """

    def __init__(
        self,
        row: int,
        request: Request,
        tokenizer: Tokenizer | None,
        eot_id: int | None,
        limit: int | None,
    ) -> None:
        self.row, self.sampling, self.sample = row, request.sampling, request.sample
        self.logprobs = request.logprobs
        self.ids = list(request.prompt)  # then what was drawn
        self.start = 0  # where in `ids` that begins which the model sees
        self.end: End = ""
        self.filters = self.sampling.filters
        self._prompt_length = len(self.ids)
        self._ends = request.ends if eot_id is None else request.ends | {eot_id}
        self._limit = sys.maxsize if limit is None else limit
        self._stops = StopStrings(self.sampling.stop)
        self._decoding = None if tokenizer is None else TextStream(tokenizer.token_bytes)
        self._specials = set() if tokenizer is None else {*tokenizer.special_ids.values()}
        if self._decoding is not None:
            # A prompt may end inside a character, such as a story that was cut there: the next
            # token completes it. No character has more than four bytes.
            for id in self.ids[-4:]:
                self._decoding.push(id)

    @property
    def count(self) -> int:
        """How many tokens were drawn."""
        return len(self.ids) - self._prompt_length

    def take(
        self, token: int, logprob: float | None = None, top: tuple[tuple[int, float], ...] = ()
    ) -> Piece:
        """Append a token; what it says, and whether it is the last."""
        self.ids.append(token)
        text = self._stops.push("" if self._decoding is None else self._decoding.push(token))
        if token in self._specials:  # it stands behind what came before, and is in no stop string
            text += self._stops.finish()
        if token in self._ends:
            self.end = "end_of_text"
            text += self._stops.push("" if self._decoding is None else self._decoding.finish())
        elif self._stops.found:
            self.end = "stop"
        elif self.count >= self.sampling.max_tokens:
            self.end = "max_tokens"
        elif len(self.ids) > self._limit:
            self.end = "context"
        if self.end:  # the bytes of an unfinished character stay unsaid
            text += self._stops.finish()
        return Piece(self.row, token, text, self.end, logprob, top)
