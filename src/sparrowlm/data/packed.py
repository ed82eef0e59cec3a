"""Packed fine-tuning files: HDF5 with `tokens`, (N, T) of integers, and `loss_mask`, (N, T), which
is 1 where that token is to be learned.

A row stays one sequence, as its makers trained on it, whatever chats they put into it. What follows
its last learned token is padding, and goes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sparrowlm.data.survey import Sample, Survey, encoded
from sparrowlm.data.tokens import are_tokens, read_packed
from sparrowlm.text.chat import ChatFormat, Encoded
from sparrowlm.text.rows import Rejected


def samples_of(survey: Survey, chat: ChatFormat) -> Iterator[tuple[Sample, list[Encoded]]]:
    """Every sample with the ids of its sides, uncut: conversations are encoded, packed rows are as
    they are.

    Raises:
        DataError: a bad row, unless bad rows are skipped; a file that cannot be read.
    """
    if survey.kind == "chats" and are_tokens(survey.sources):
        return packed_rows(survey, chat.tokenizer.vocab_size)
    return encoded(survey, chat)


def packed_rows(survey: Survey, vocab_size: int) -> Iterator[tuple[Sample, list[Encoded]]]:
    """Every row of the survey's files with its ids and mask, uncut.

    Raises:
        DataError: a file that is none, or a bad row, unless bad rows are skipped.
    """
    for source in survey.sources:
        path, number = str(source.path), 0
        for all_ids, masks in read_packed(source.path):
            for ids, mask in zip(all_ids, masks, strict=True):
                number += 1
                if fault := _fault(ids, mask, vocab_size):
                    survey.reject(Rejected(path, number, fault))
                    continue
                survey.accepted += 1
                sample = Sample((), 1, path, number, ids.tobytes())
                yield sample, [Encoded(ids, mask == 1)]
        survey.read += source.path.stat().st_size


def _fault(ids: np.ndarray, mask: np.ndarray, vocab_size: int) -> str:
    """What is wrong with a row, or nothing."""
    outside = (ids < 0) | (ids >= vocab_size)
    if outside.any():
        at = int(np.argmax(outside))
        return f"token {at} is {int(ids[at])}, and the vocabulary has {vocab_size}"
    odd = (mask != 0) & (mask != 1)
    return f"loss_mask holds {int(mask[np.argmax(odd)])}, and must be 0 or 1" if odd.any() else ""
