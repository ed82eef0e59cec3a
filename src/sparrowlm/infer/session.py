"""Requests that come and go over one cache.

Slots of the cache, from the first on:

    ready …    each is given a token by every round
    reading …  prompts that are not read to their end yet, a bounded number of tokens a round
    free …     hold what their last sequence read, until they are needed: a prompt that begins
               as any slot does shares its keys and values, so the next turn of a chat reads only
               what is new

Those under way stand side by side, so that a round is one pass over one part of the cache.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparrowlm.errors import ConfigError, RunError, UserError
from sparrowlm.infer.completion import Completion, Piece, Request
from sparrowlm.infer.decoder import Decoder
from sparrowlm.infer.graphs import Graphs
from sparrowlm.infer.sampling import NOT_A_NUMBER, draw, log_probabilities, next_tokens
from sparrowlm.model.cache import KVCache
from sparrowlm.text.tokenizer import Tokenizer

CHUNK = 256
"""Tokens of prompts that a round reads at most, unless told otherwise."""
GRID = 64
"""Tokens of a prompt that one pass reads in exact mode, and keys that a span grows by."""


@dataclass
class _Slot:
    """What a slot of the cache holds."""

    ids: list[int] = field(default_factory=list)  # whose keys and values are there
    read: int = 0  # how many of them as a prompt, the rest one by one as they were drawn
    left: int = 0  # the round in which it became free


class Session:
    """Requests in, pieces out, round by round. One thread uses it.

    Args:
        decoder: the model.
        tokenizer: None where only ids are known; pieces have no text then.
        slots: completions under way at once; more of them wait.
        max_len: ids, prompt included, that the model sees of a completion.
        vocab_size: ids from here on mean nothing.
        eot_id: ends every completion.
        slide: a completion that fills `max_len` goes on with the last half. Otherwise it ends.
        chunk: tokens of prompts that one round reads at most, so that a long prompt does not
            hold up those under way. None: whatever waits.
        exact: the tokens and log-probabilities of a request are the same, to the last bit,
            whatever else is under way. A product of one row may add up in another order than one
            of two, so every pass has one shape then: a round computes all `slots` rows, idle ones
            too; prompts are read `GRID` tokens at a time, padded; and only what was read so is
            shared, not what was drawn (docs/performance.md says what that costs).
        graphs: give out rounds as CUDA graphs, of all slots too.

    >>> session = engine.session()
    >>> row = session.submit(Request(engine.prompt("Once"), Sampling(max_tokens=40)))
    >>> while session.busy:
    ...     for piece in session.round():
    ...         print(piece.text, end="")
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer | None,
        *,
        slots: int,
        max_len: int,
        vocab_size: int,
        eot_id: int | None = None,
        slide: bool = True,
        chunk: int | None = CHUNK,
        exact: bool = False,
        graphs: bool = False,
    ) -> None:
        self._decoder, self._tokenizer = decoder, tokenizer
        self._vocab_size, self._eot_id, self._slide_on = vocab_size, eot_id, slide
        self._chunk = sys.maxsize if chunk is None else max(chunk, GRID) if exact else chunk
        self._exact = exact
        self._cache = KVCache(
            decoder.config, slots, max_len, device=decoder.device, dtype=decoder.dtype
        )
        self._graphs = Graphs(decoder, self._cache) if graphs else None
        self._slots = [_Slot() for _ in range(slots)]
        self._active: list[Completion] = []  # the completion at place i is in slot i
        self._ready = 0  # how many of them have read their prompts
        self._waiting: deque[Completion] = deque()
        self._submitted = self._rounds = 0

    @property
    def slots(self) -> int:
        """Completions that can be under way at once."""
        return len(self._slots)

    @property
    def active(self) -> int:
        """Completions that have a slot."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """Requests without a slot."""
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether a round has anything to do."""
        return bool(self._active or self._waiting)

    def submit(self, request: Request) -> int:
        """Queue a request; the number by which its pieces and `cancel` know it.

        Raises:
            UserError: the prompt is empty, too long or not of this vocabulary; `logprobs` is out
                of range.
            ConfigError: stop strings without a tokenizer.
        """
        self._check(request)
        row = self._submitted
        limit = None if self._slide_on else self._cache.max_len
        self._waiting.append(Completion(row, request, self._tokenizer, self._eot_id, limit))
        self._submitted += 1
        return row

    def cancel(self, row: int) -> None:
        """End a request without another piece; the next round can use its slot. One that is
        unknown or has ended is ignored."""
        for place, one in enumerate(self._active):
            if one.row == row:
                self._leave(place)
                return
        self._waiting = deque(one for one in self._waiting if one.row != row)

    @torch.inference_mode()
    def round(self) -> list[Piece]:
        """Read what waits, no more than `chunk` tokens, and give every completion that has read
        its prompt a token.

        Raises:
            RunError: the model's logits are not numbers.
        """
        self._rounds += 1
        self._slide()
        self._read()
        pieces = self._write(self._active[: self._ready]) if self._ready else []
        for place in reversed(range(self._ready)):
            if self._active[place].end:
                self._leave(place)
        return pieces

    def _check(self, request: Request) -> None:
        length, most, size = len(request.prompt), self._cache.max_len, self._vocab_size
        if not length:
            raise UserError("the prompt has no tokens", fix="Engine.prompt gives an empty text one")
        if length > most:
            whose = "the model's context"
            if most < self._decoder.config.max_seq_len:
                whose = "what this session holds of a completion is"
            raise UserError(
                f"the prompt has {length} tokens, and {whose} {most}",
                fix="shorten the prompt, or train with a larger model.max_seq_len",
            )
        if not all(0 <= id < size for id in request.prompt):
            raise UserError(f"the prompt holds an id outside the {size} of the model")
        if request.logprobs is not None and not 0 <= request.logprobs <= size:
            raise UserError(f"logprobs is {request.logprobs}, and must be 0 to {size}")
        if request.sampling.stop and self._tokenizer is None:
            raise ConfigError("stop strings need a tokenizer", where="stop")

    def _slide(self) -> None:
        """Where all of a context is full, read its last half again. The positions start anew, as
        those of a row in training do anywhere in a text."""
        for place in reversed(range(self._ready)):
            if len(self._slots[place].ids) == self._cache.max_len:
                one = self._active[place]
                one.start = len(one.ids) - max(self._cache.max_len // 2, 1)
                self._slots[place] = _Slot()
                self._cache.cut(place)
                self._ready -= 1
                self._swap(place, self._ready)

    def _read(self) -> None:
        """Read prompts in the order in which they came, and begin those for which there is room."""
        left = self._chunk
        while True:
            if self._ready == len(self._active):
                if not self._waiting or len(self._active) == self.slots:
                    return
                self._begin(self._waiting.popleft())
            place = min(range(self._ready, len(self._active)), key=lambda at: self._active[at].row)
            one, slot = self._active[place], self._slots[place]
            unread = one.ids[one.start + len(slot.ids) : -1]
            part = unread[:left] if not self._exact else unread[:GRID] if left >= GRID else []
            if part:
                self._read_part(place, part)
                left -= GRID if self._exact else len(part)
            elif unread:
                return
            if len(part) == len(unread):
                self._swap(place, self._ready)
                self._ready += 1

    def _read_part(self, place: int, part: list[int]) -> None:
        """Read some tokens of a prompt, in one pass."""
        slot, cache = self._slots[place], self._cache.rows(place, place + 1)
        padding = [0] * (GRID - len(part)) if self._exact else []
        tokens = torch.tensor([part + padding], device=self._decoder.device)
        if self._exact:
            self._decoder(tokens, cache, [len(part)], self._span(len(slot.ids) + GRID))
        else:
            self._decoder(tokens, cache)
        slot.ids += part
        slot.read = len(slot.ids)

    def _span(self, needed: int) -> int:
        """Keys that a pass of exact mode reads."""
        return min(-(-needed // GRID) * GRID, self._cache.max_len)

    def _begin(self, new: Completion) -> None:
        """Give a completion a free slot, with as much of its prompt as any slot has read. The
        last token is left for the round, which needs what the model says behind it."""
        first, prompt = len(self._active), new.ids[:-1]
        shared = [_common(slot.ids, prompt) for slot in self._slots]
        if self._exact:
            pairs = zip(shared, self._slots, strict=True)
            shared = [min(common, slot.read) // GRID * GRID for common, slot in pairs]
        free = range(first, self.slots)
        # A free slot goes on in place where little else is lost; otherwise the one that has been
        # free for longest takes a copy.
        source = max(range(self.slots), key=lambda at: (shared[at], at in free))
        target = source
        if source not in free or 2 * shared[source] < len(self._slots[source].ids):
            target = min(free, key=lambda at: (self._slots[at].left, at))
        if target != source and shared[source]:
            self._cache.copy(source, target, shared[source])
        self._slots[target] = _Slot(prompt[: shared[source]], shared[source])
        self._cache.cut(target, shared[source])
        self._active.append(new)
        self._swap_slots(target, first)

    def _leave(self, place: int) -> None:
        """Free a slot; what it holds stays there."""
        if place < self._ready:
            self._ready -= 1
            self._swap(place, self._ready)
            place = self._ready
        last = len(self._active) - 1
        self._swap(place, last)
        self._active.pop()
        self._slots[last].left = self._rounds

    def _swap(self, a: int, b: int) -> None:
        """Let two completions change places."""
        self._active[a], self._active[b] = self._active[b], self._active[a]
        self._swap_slots(a, b)

    def _swap_slots(self, a: int, b: int) -> None:
        if a != b:
            self._slots[a], self._slots[b] = self._slots[b], self._slots[a]
            self._cache.swap(a, b)

    def _write(self, rows: Sequence[Completion]) -> list[Piece]:
        """Read the last token of every completion and draw the next."""
        logits = self._logits(rows)
        drawn = next_tokens(
            logits,
            [one.filters for one in rows],
            [draw(one.sampling.seed, one.sample, one.count) for one in rows],
            [one.ids for one in rows],
        ).tolist()
        if NOT_A_NUMBER in drawn:
            raise RunError(
                "the model's logits are not numbers",
                why="its training diverged, or its precision is too low for its values",
                fix="write from an earlier checkpoint",
            )
        said = log_probabilities(logits, drawn, [one.logprobs for one in rows])
        return [one.take(token, *s) for one, token, s in zip(rows, drawn, said, strict=True)]

    def _logits(self, rows: Sequence[Completion]) -> Tensor:
        """(B, V) behind the last token of every completion."""
        count = len(rows)
        last = [one.ids[-1] for one in rows]
        for slot, id in zip(self._slots, last, strict=False):
            slot.ids.append(id)
        device = self._decoder.device
        if not self._exact and self._graphs is None:
            tokens = torch.tensor(last, device=device)[:, None]
            hidden = self._decoder(tokens, self._cache.rows(0, count)).hidden[:, -1]  # (B, D)
            return self._decoder.logits(hidden)[:, : self._vocab_size]
        idle = [0] * (self.slots - count)
        tokens = torch.tensor(last + idle, device=device)[:, None]
        counts = [1] * count + idle
        span = self._span(max(len(slot.ids) for slot in self._slots[:count]))
        window = self._cache.window(1, counts, span)
        if self._graphs is None:
            logits = self._decoder.step(tokens, self._cache, window)
        else:
            logits = self._graphs(tokens, window)
        self._cache.advance(1, counts)
        return logits[:count, : self._vocab_size]


def _common(held: Sequence[int], prompt: Sequence[int]) -> int:
    """How many ids two sequences have in common from their beginning.

    >>> _common([5, 6, 7], [5, 6, 9, 9])
    2
    """
    pairs = enumerate(zip(held, prompt, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(held), len(prompt)))
