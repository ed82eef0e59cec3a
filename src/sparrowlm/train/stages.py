"""What may be trained: a stage names a stream and an objective, and nothing else differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from sparrowlm.batch import Batch, Objective
from sparrowlm.config import Recipe
from sparrowlm.data.mixed import MixedStream
from sparrowlm.data.mixture import Mixture
from sparrowlm.data.sequences import AnyDataset, PackedStream, SequenceDataset, packed_windows
from sparrowlm.data.shards import Dataset
from sparrowlm.data.streams import TokenStream, windows
from sparrowlm.errors import DataError
from sparrowlm.model.transformer import Transformer
from sparrowlm.objectives.next_token import NextToken
from sparrowlm.runtime import Runtime, derived_seed
from sparrowlm.train.trainer import Stream


@dataclass(frozen=True)
class Scene:
    """What a stage is made from."""

    recipe: Recipe
    """Resolved."""
    dataset: AnyDataset
    runtime: Runtime
    model: Transformer | None = None
    """What is trained, on its device; None where only rows are to be counted."""
    reference: Transformer | None = None
    """Frozen: what a policy is held to, or a student's teacher; None where the stage has none."""


class RowStream(Stream, Protocol):
    """A stream that knows how long an epoch is."""

    rows_per_epoch: int


class Stage(NamedTuple):
    """The holes of the loop, filled."""

    stream: Callable[[Scene], RowStream]
    held_out: Callable[[Scene], Iterator[Batch]]
    objective: Callable[[Scene], Objective]


def token_stream(scene: Scene) -> TokenStream | MixedStream:
    """Rows of the training split in a seeded order; those of a mixture by weight."""
    recipe, dataset = scene.recipe, text_of(scene)
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


def held_out_windows(scene: Scene) -> Iterator[Batch]:
    """The held-out split from end to end, or `eval.windows` rows evenly over it."""
    recipe, dataset = scene.recipe, text_of(scene)
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


def packed_stream(scene: Scene) -> PackedStream:
    """Packed rows of conversations or pairs."""
    train = scene.recipe.train
    rows = train.batch_tokens // train.seq_len
    return PackedStream(sequences_of(scene).train, train.seq_len, rows, train.seed)


def held_out_sequences(scene: Scene) -> Iterator[Batch]:
    """The held-out sequences, packed."""
    recipe, held_out = scene.recipe, sequences_of(scene).val
    if held_out is None:
        return iter(())
    size, limit = recipe.eval.micro_batch_size, recipe.eval.windows
    return packed_windows(held_out, recipe.train.seq_len, size, limit)


def next_token(scene: Scene) -> Objective:
    """The nats of what follows, and the bits of each byte where a tokenizer knows them."""
    tokenizer = scene.dataset.tokenizer
    if tokenizer is None:
        return NextToken(None)
    return NextToken(torch.from_numpy(tokenizer.byte_lengths()).long())


def text_of(scene: Scene) -> Dataset:
    """The dataset of a stage that trains on plain tokens."""
    if not isinstance(scene.dataset, Dataset):
        raise TypeError(f"stage {scene.recipe.stage} was given {type(scene.dataset).__name__}")
    return scene.dataset


def sequences_of(scene: Scene) -> SequenceDataset:
    """The dataset of a stage that trains on sequences."""
    if not isinstance(scene.dataset, SequenceDataset):
        raise TypeError(f"stage {scene.recipe.stage} was given {type(scene.dataset).__name__}")
    return scene.dataset


STAGES: dict[str, Stage] = {
    "pretrain": Stage(token_stream, held_out_windows, next_token),
    "sft": Stage(packed_stream, held_out_sequences, next_token),
}
