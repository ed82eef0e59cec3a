"""What may be trained: a stage names a stream and an objective, and nothing else differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

from sparrowlm.batch import Batch, Objective
from sparrowlm.config import Recipe
from sparrowlm.data.mixed import MixedStream
from sparrowlm.data.mixture import Mixture
from sparrowlm.data.shards import Dataset
from sparrowlm.data.streams import TokenStream, windows
from sparrowlm.errors import DataError
from sparrowlm.objectives.next_token import NextToken
from sparrowlm.runtime import derived_seed


class Stage(NamedTuple):
    """Two holes of the loop, filled."""

    stream: Callable[[Recipe, Dataset], TokenStream | MixedStream]
    held_out: Callable[[Recipe, Dataset], Iterator[Batch]]
    objective: Callable[[Tensor | None], Objective]


def token_stream(recipe: Recipe, dataset: Dataset) -> TokenStream | MixedStream:
    """Rows of the training split in a seeded order; those of a mixture by weight."""
    rows = recipe.train.batch_tokens // recipe.train.seq_len
    if not isinstance(dataset, Mixture):
        return _rows_of(recipe, dataset, rows, recipe.train.seed)
    streams = []
    for number, part in enumerate(dataset.parts):
        try:
            seed = derived_seed(recipe.train.seed, number)
            streams.append(_rows_of(recipe, part.dataset, rows, seed))
        except DataError as fault:
            raise DataError(
                fault.what, where=f"data.mix, source {part.name!r}", why=fault.where, fix=fault.fix
            ) from fault
    return MixedStream(streams, [part.weight for part in dataset.parts], rows)


def _rows_of(recipe: Recipe, dataset: Dataset, rows: int, seed: int) -> TokenStream:
    return TokenStream(
        dataset.train,
        seq_len=recipe.train.seq_len,
        rows=rows,
        seed=seed,
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
