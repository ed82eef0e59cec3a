"""Rows of conversations with rows of pretraining text among them, against forgetting.

A model that is only shown answers forgets what it read. A share of the rows keeps showing it text;
which row is which is a function of the row's number (`mixed.Deal`).
"""

from __future__ import annotations

import numpy as np

from sparrowlm.batch import Batch
from sparrowlm.data.mixed import Deal
from sparrowlm.data.packing import between
from sparrowlm.data.sequences import PackedStream
from sparrowlm.data.streams import TokenStream, batch_of, rank_rows
from sparrowlm.errors import ConfigError


class ReplayStream:
    """Packed rows, and plain text in the given share of them.

    Args:
        packed: the conversations.
        text: what is replayed, with the same `seq_len`.
        share: of the rows that are text, above 0 and below 1.

    Raises:
        ConfigError: another share.
    """

    def __init__(self, packed: PackedStream, text: TokenStream, share: float) -> None:
        if not 0 < share < 1:
            raise ConfigError(
                f"is {share}, and must be above 0 and below 1",
                where="data.replay_share",
                fix="0.1 replays a tenth; without data.replay nothing is replayed",
            )
        self.packed, self.text, self.rows = packed, text, packed.rows
        self._deal = Deal([share, round(1 - share, 12)])
        self.rows_per_epoch = round(packed.rows_per_epoch / (1 - share))
        """An epoch goes through the conversations once."""

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The rows of one rank in one step, in the order of their numbers."""
        rows = np.arange(*rank_rows(step, self.rows, rank, world_size), dtype=np.int64)
        sources, own = self._deal.of(rows)
        text, chats = np.flatnonzero(sources == 0), np.flatnonzero(sources == 1)
        replayed = batch_of(self.text.read(own[text]), self.text.separator)
        order = np.argsort(np.concatenate([text, chats]))
        return between(replayed, self.packed.read(own[chats]), order)
