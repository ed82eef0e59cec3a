"""Prompts in, tokens and text out, several at once.

Sequences that are under way hold the first slots of one cache; each round gives every one of
them a token. One that ends makes room for the next that waits, so a batch is never held up by its
longest row.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch

from sparrowlm.errors import ConfigError, RunError, UserError
from sparrowlm.infer.decoder import Decoder
from sparrowlm.infer.sampling import NOT_A_NUMBER, Sampling, draw, next_tokens
from sparrowlm.infer.stops import StopStrings
from sparrowlm.model.cache import KVCache
from sparrowlm.model.transformer import Transformer
from sparrowlm.runtime import Runtime
from sparrowlm.text.stream import TextStream
from sparrowlm.text.tokenizer import Tokenizer

SLOTS = 16
"""Sequences under way at once, unless told otherwise."""

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


class Piece(NamedTuple):
    """What a round adds to one completion."""

    row: int
    """Which request."""
    token: int
    """The id, as drawn."""
    text: str
    """What may be shown now: whole characters, and nothing of a stop string."""
    end: End
    """Empty while it goes on, else why this piece is the last."""


class Engine:
    """A model that writes.

    Args:
        model: copied into the layout of `Decoder`, and left as it is.
        tokenizer: None where only ids are known; pieces have no text then.
        runtime: of the model; the precision is that of products and cache.
        slots: sequences under way at once.
        slide: where a sequence fills the context, go on with the last half of it. Otherwise it
            ends there.
        compile: as of `Decoder`.

    >>> engine = Engine(model, tokenizer, runtime)
    >>> engine.text("Once upon a time", Sampling(temperature=0.8, max_tokens=40))
    ', there was a sparrow …'
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer | None,
        runtime: Runtime,
        *,
        slots: int = SLOTS,
        slide: bool = True,
        compile: bool = False,
    ) -> None:
        self.decoder = Decoder(model, runtime.autocast_dtype, compile=compile)
        self.tokenizer, self.slots, self.slide = tokenizer, slots, slide
        self.context = model.config.max_seq_len
        self.eot_id = None if tokenizer is None else tokenizer.eot_id
        # A table may be larger than the vocabulary; its spare rows mean nothing.
        self.vocab_size = model.config.vocab_size if tokenizer is None else tokenizer.vocab_size

    def prompt(self, text: str) -> list[int]:
        """The ids of a text. Of an empty one the end-of-text token, which is what stood before
        every document in training; without such a token a line end, or else id 0.

        Raises:
            TokenizerError: the vocabulary cannot write the text.
            ConfigError: text, but no tokenizer.
        """
        if self.tokenizer is None:
            if text:
                raise ConfigError("text cannot become ids without a tokenizer", where="prompt")
            return [0]
        if text:
            return self.tokenizer.encode(text)
        if self.eot_id is not None:
            return [self.eot_id]
        newline = [id for id in range(self.vocab_size) if self.tokenizer.token_bytes(id) == b"\n"]
        return newline or [0]

    def text(self, prompt: str, sampling: Sampling) -> str:
        """The completion of a text, whole."""
        request = Request(self.prompt(prompt), sampling)
        return "".join(piece.text for piece in self.stream([request]))

    def stream(self, requests: Sequence[Request]) -> Iterator[Piece]:
        """Write, piece by piece; the pieces of different rows come interleaved.

        A row's draws depend on its seed, its sample and how far it is, never on the rows around
        it; its logits do so in the last bits of float32.

        Raises:
            UserError: a prompt is empty, longer than the context, or not of this vocabulary.
            ConfigError: stop strings without a tokenizer.
            RunError: the model's logits are not numbers.
        """
        for request in requests:
            self._check(request)
        waiting = deque(self._sequence(row, request) for row, request in enumerate(requests))
        cache = self._cache(requests)
        active: list[_Sequence] = []  # the sequence at place i is in slot i
        while waiting or active:
            while waiting and len(active) < cache.slots:
                self._join(waiting.popleft(), active, cache)
            self._slide(active, cache)
            for sequence, token in zip(active, self._round(active, cache), strict=True):
                yield sequence.take(token)
            for slot in reversed(range(len(active))):
                if active[slot].end:
                    _leave(slot, active, cache)

    def _check(self, request: Request) -> None:
        length = len(request.prompt)
        if not length:
            raise UserError("the prompt has no tokens", fix="Engine.prompt gives an empty text one")
        if length > self.context:
            raise UserError(
                f"the prompt has {length} tokens, and the model's context {self.context}",
                fix="shorten the prompt, or train with a larger model.max_seq_len",
            )
        if not all(0 <= id < self.vocab_size for id in request.prompt):
            raise UserError(f"the prompt holds an id outside the {self.vocab_size} of the model")
        if request.sampling.stop and self.tokenizer is None:
            raise ConfigError("stop strings need a tokenizer", where="stop")

    def _sequence(self, row: int, request: Request) -> _Sequence:
        text = None if self.tokenizer is None else TextStream(self.tokenizer.token_bytes)
        limit = sys.maxsize if self.slide else self.context
        # A copy: the caller may append what it gets to the list it gave.
        request = request._replace(prompt=tuple(request.prompt))
        return _Sequence(row, request, text, self.eot_id, limit)

    def _cache(self, requests: Sequence[Request]) -> KVCache:
        """As large as these requests can need: all tokens but the last drawn are read."""
        lengths = [len(one.prompt) + one.sampling.max_tokens - 1 for one in requests]
        return KVCache(
            self.decoder.config,
            slots=min(self.slots, len(requests)),
            max_len=min(self.context, max(lengths, default=1)),
            device=self.decoder.device,
            dtype=self.decoder.dtype,
        )

    def _join(self, new: _Sequence, active: list[_Sequence], cache: KVCache) -> None:
        """Give a sequence the next slot, with all of its prompt read but the last token. Several
        completions of one prompt read it once."""
        slot, prompt = len(active), new.request.prompt
        twins = (at for at, one in enumerate(active) if one.whole and one.request.prompt == prompt)
        twin = next(twins, None)
        if twin is None:
            self._read(prompt[:-1], cache.rows(slot, slot + 1))
        else:
            cache.copy(twin, slot)
            cache.lengths[slot] = len(prompt) - 1
        active.append(new)

    def _slide(self, active: list[_Sequence], cache: KVCache) -> None:
        """Read the last half of a context again where all of it is full. The positions start
        anew, as those of a row in training do anywhere in a text."""
        for slot, length in enumerate(cache.lengths.tolist()[: len(active)]):
            if length == self.context:
                kept = active[slot].ids[-max(self.context // 2, 1) :]
                self._read(kept[:-1], cache.rows(slot, slot + 1))
                active[slot].whole = False

    @torch.inference_mode()
    def _read(self, ids: Sequence[int], cache: KVCache) -> None:
        """Put a sequence into a cache of one slot, in place of what is there."""
        cache.reset()
        if ids:
            self.decoder(torch.tensor([list(ids)], device=self.decoder.device), cache)

    @torch.inference_mode()
    def _round(self, active: list[_Sequence], cache: KVCache) -> list[int]:
        """Read the last token of every sequence and draw the next."""
        last = torch.tensor([[one.ids[-1]] for one in active], device=self.decoder.device)
        hidden = self.decoder(last, cache.rows(0, len(active))).hidden[:, -1]  # (B, D)
        drawn = next_tokens(
            self.decoder.logits(hidden)[:, : self.vocab_size],
            [one.request.sampling.filters for one in active],
            [draw(one.request.sampling.seed, one.request.sample, one.count) for one in active],
            [one.ids for one in active],
        ).tolist()
        if NOT_A_NUMBER in drawn:
            raise RunError(
                "the model's logits are not numbers",
                why="its training diverged, or its precision is too low for its values",
                fix="write from an earlier checkpoint",
            )
        return drawn


@dataclass
class _Sequence:
    """A completion under way."""

    row: int
    request: Request
    decoding: TextStream | None
    eot_id: int | None
    limit: int  # ids that end it, where the context may not slide
    ids: list[int] = field(init=False)  # the prompt, then what was drawn
    whole: bool = True  # its slot begins with the whole prompt
    end: End = ""

    def __post_init__(self) -> None:
        self.ids = list(self.request.prompt)
        self.stops = StopStrings(self.request.sampling.stop)
        if self.decoding is not None:
            # A prompt may end inside a character, such as a story that was cut there: the next
            # token completes it. No character has more than four bytes.
            for id in self.ids[-4:]:
                self.decoding.push(id)

    @property
    def count(self) -> int:
        """How many tokens were drawn."""
        return len(self.ids) - len(self.request.prompt)

    def take(self, token: int) -> Piece:
        """Append a token; what it says, and whether it is the last."""
        self.ids.append(token)
        text = self.stops.push("" if self.decoding is None else self.decoding.push(token))
        if token == self.eot_id or token in self.request.ends:
            self.end = "end_of_text"
            text += self.stops.push("" if self.decoding is None else self.decoding.finish())
        elif self.stops.found:
            self.end = "stop"
        elif self.count >= self.request.sampling.max_tokens:
            self.end = "max_tokens"
        elif len(self.ids) > self.limit:
            self.end = "context"
        if self.end:  # the bytes of an unfinished character stay unsaid
            text += self.stops.finish()
        return Piece(self.row, token, text, self.end)


def _leave(slot: int, active: list[_Sequence], cache: KVCache) -> None:
    """Free a slot: the last sequence moves into it, so that those under way stay side by side."""
    last = active.pop()
    if slot < len(active):
        active[slot] = last
        cache.copy(len(active), slot)
