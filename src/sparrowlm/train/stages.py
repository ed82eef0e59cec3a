"""What may be trained: a stage names a stream and an objective, and nothing else differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

from sparrowlm.batch import Batch, Objective
from sparrowlm.config import Recipe
from sparrowlm.data.shards import Dataset
from sparrowlm.data.streams import TokenStream, windows
from sparrowlm.objectives.next_token import NextToken


class Stage(NamedTuple):
    """Two holes of the loop, filled."""

    stream: Callable[[Recipe, Dataset], TokenStream]
    held_out: Callable[[Recipe, Dataset], Iterator[Batch]]
    objective: Callable[[Tensor | None], Objective]


def token_stream(recipe: Recipe, dataset: Dataset) -> TokenStream:
    """Rows of the training split in a seeded order."""
    return TokenStream(
        dataset.train,
        seq_len=recipe.train.seq_len,
        rows=recipe.train.batch_tokens // recipe.train.seq_len,
        seed=recipe.train.seed,
        eot_id=dataset.eot_id,
        document_mask=recipe.data.document_mask,
    )


def held_out_windows(recipe: Recipe, dataset: Dataset) -> Iterator[Batch]:
    """The held-out split from end to end, or `eval.windows` rows evenly over it."""
    if dataset.val is None:
        return iter(())
    return windows(
        dataset.val,
        seq_len=recipe.train.seq_len,
        rows=recipe.eval.micro_batch_size,
        limit=recipe.eval.windows,
        eot_id=dataset.eot_id,
        document_mask=recipe.data.document_mask,
    )


STAGES: dict[str, Stage] = {
    "pretrain": Stage(token_stream, held_out_windows, NextToken),
}
