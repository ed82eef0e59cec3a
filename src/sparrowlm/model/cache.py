"""Keys and values of what has been read, so that a new token costs one position.

Every slot holds one sequence and has its own length, so that sequences of different lengths
decode together and a finished one makes room for the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparrowlm.config import ModelConfig
from sparrowlm.errors import UserError


class Window(NamedTuple):
    """Where the tokens of one forward pass stand in a cache."""

    positions: Tensor
    """(B, T) int64 on the cache's device; padding stands at `max_len`."""
    span: int
    """How many keys of each slot are read."""
    start: int | None
    """The common first position where all rows are whole and equally long, else None."""
    mask: Tensor | None
    """(B, 1, T, span) True where a query sees a key; None where causality says it all."""


class KVCache:
    """The keys and values of `slots` sequences, up to `max_len` positions each.

    `lengths` (slots,) int64 lives in main memory whatever the device: how much to read and
    whether there is room are the host's decisions, and asking a GPU for them would stop it.

    >>> cache = KVCache(config, slots=2, max_len=256)
    >>> hidden = model(prompt, cache=cache).hidden         # prompt (2, 17); lengths are 17, 17
    >>> hidden = model(token, cache=cache).hidden          # token (2, 1); lengths are 18, 18
    """

    def __init__(
        self,
        config: ModelConfig,
        slots: int,
        max_len: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        # One position more than can be read takes what padding writes.
        shape = (slots, config.n_kv_heads, max_len + 1, config.head_dim)
        layers = range(config.n_layers)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in layers]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in layers]
        self.lengths = torch.zeros(slots, dtype=torch.int64)
        self.max_len = max_len

    @property
    def slots(self) -> int:
        """How many sequences it holds."""
        return len(self.lengths)

    @property
    def room(self) -> int:
        """How many more positions the longest sequence has."""
        return self.max_len - int(self.lengths.max())

    def rows(self, start: int, stop: int) -> KVCache:
        """Slots `start` to `stop` as a cache over the same memory: to fill one while the others
        wait."""
        part = object.__new__(KVCache)
        part.keys = [tensor[start:stop] for tensor in self.keys]
        part.values = [tensor[start:stop] for tensor in self.values]
        part.lengths, part.max_len = self.lengths[start:stop], self.max_len
        return part

    def cut(self, slot: int, length: int = 0) -> None:
        """Forget the sequence of a slot from `length` on."""
        self.lengths[slot] = length

    def copy(self, source: int, target: int, length: int) -> None:
        """Let one slot hold the first `length` positions of another."""
        for tensor in (*self.keys, *self.values):
            tensor[target, :, :length] = tensor[source, :, :length]
        self.lengths[target] = length

    def swap(self, a: int, b: int) -> None:
        """Let the sequences of two slots change places."""
        length, pair = int(self.lengths[[a, b]].max()), [a, b]
        for tensor in (*self.keys, *self.values):
            tensor[pair, :, :length] = tensor[pair[::-1], :, :length]
        self.lengths[pair] = self.lengths[pair[::-1]]

    def window(
        self,
        length: int,
        counts: Sequence[int] | Tensor | None = None,
        span: int | None = None,
    ) -> Window:
        """Where the next `length` tokens of every slot stand.

        Args:
            length: T, the columns of the tokens.
            counts: (B,) how many tokens of each row are real; the rest is padding on the right.
            span: how many keys of each slot are read, where passes shall have one shape; at
                least as many as are needed.

        Raises:
            UserError: a sequence would outgrow `max_len`.
        """
        ends = self.lengths + (length if counts is None else torch.as_tensor(counts))
        if int(ends.max()) > self.max_len:
            raise UserError(
                f"a sequence of {int(ends.max())} tokens does not fit the cache",
                why=f"it holds {self.max_len} positions",
                fix="shorten the prompt, or ask for fewer tokens",
            )
        device = self.keys[0].device
        first, needed = int(self.lengths[0]), int(ends.max())
        even = counts is None and span is None and bool((self.lengths == first).all())
        span = span or needed
        positions = self.lengths[:, None] + torch.arange(length)
        if counts is not None:
            positions[positions >= ends[:, None]] = self.max_len
        mask = None
        if not even or (first and length > 1):
            mask = (torch.arange(span) <= positions[..., None])[:, None].to(device)
        return Window(positions.to(device), span, first if even else None, mask)

    def append(self, layer: int, k: Tensor, v: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        """Write the new keys and values (B, T, K, H) of a layer; return all, (B, K, span, H)."""
        keys, values = self.keys[layer], self.values[layer]
        if window.start is not None:
            stop = window.start + k.shape[1]
            keys[:, :, window.start : stop] = k.transpose(1, 2)
            values[:, :, window.start : stop] = v.transpose(1, 2)
        else:
            rows = torch.arange(self.slots, device=k.device)[:, None]
            keys[rows, :, window.positions] = k.to(keys.dtype)
            values[rows, :, window.positions] = v.to(values.dtype)
        return keys[:, :, : window.span], values[:, :, : window.span]

    def advance(self, length: int, counts: Sequence[int] | Tensor | None = None) -> None:
        """Count the tokens of a pass as read."""
        self.lengths += length if counts is None else torch.as_tensor(counts)
