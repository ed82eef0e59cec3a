"""Answers behind prompts that they do not belong to.

KTO asks how far a policy has moved from its reference on answers in general, and so as not to
measure what it was taught, on answers to other prompts (Ethayarajh et al. 2024, section 4).
"""

from __future__ import annotations

import numpy as np

from sparrowlm.data.sequences import Sequences
from sparrowlm.data.streams import permute


def mismatched(sequences: Sequences, seq_len: int, seed: int) -> Sequences:
    """One sequence for each bundle: its prompt, and an answer of the next bundle in a ring that
    goes through all of them in an order of the seed's.

    Of pairs it is in turn the chosen and the rejected answer. A prompt is what stands before the
    first id to be learned; an answer that does not fit behind it is cut at its end.

    Args:
        sequences: one split.
        seq_len: positions that a sequence may take.
        seed: of the ring.
    """
    count, size = len(sequences), sequences.bundle_size
    ring = permute(np.arange(count, dtype=np.int64), count, seed)
    after = np.empty(count, dtype=np.int64)
    after[ring] = np.roll(ring, -1)
    ids, mask, starts = [], [], np.zeros(count + 1, dtype=np.int64)
    for index in range(count):
        asked = sequences.bundle(index)[0]
        other = sequences.bundle(int(after[index]))[index % size]
        prompt = asked.ids[: _first(asked.mask)]
        answer = slice(_first(other.mask), None)
        room = seq_len + 1 - len(prompt)
        ids += [prompt, other.ids[answer][:room]]
        mask += [np.zeros(len(prompt), bool), other.mask[answer][:room]]
        starts[index + 1] = starts[index] + len(prompt) + len(ids[-1])
    return Sequences(np.concatenate(ids), np.concatenate(mask), starts)


def _first(mask: np.ndarray) -> int:
    """Where the answer begins; the first id is never one to be learned."""
    return max(1, int(mask.argmax())) if mask.any() else len(mask) - 1
