"""What may be trained: a stage names a stream and an objective, and nothing else differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from sparrowlm.batch import Batch, Objective
from sparrowlm.checkpoint import find_run
from sparrowlm.config import Recipe
from sparrowlm.data.mixed import MixedStream
from sparrowlm.data.mixture import Mixture
from sparrowlm.data.prompts import PromptDataset
from sparrowlm.data.replay import ReplayStream
from sparrowlm.data.sequences import AnyDataset, PackedStream, SequenceDataset, packed_windows
from sparrowlm.data.shards import Dataset
from sparrowlm.data.streams import TokenStream, windows
from sparrowlm.errors import ConfigError, DataError, RunError
from sparrowlm.infer.rollouts import RolloutStream, Score
from sparrowlm.infer.scoring import scores_of
from sparrowlm.model.transformer import Transformer
from sparrowlm.objectives.distill import Distill
from sparrowlm.objectives.next_token import NextToken
from sparrowlm.objectives.policy import Policy
from sparrowlm.objectives.preference import Preference
from sparrowlm.objectives.reward import Reward
from sparrowlm.runtime import Runtime, derived_seed
from sparrowlm.train.mismatch import WithReferencePoint, shift, with_point
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
    """Frozen: what a policy is held to, or a student's teacher; None where the stage has none, and
    for dpo, whose reference has said all it has to say in a column of the data."""
    objective: Objective | None = None
    """What is minimized, on the model's device, where a stream asks it for more than a loss."""
    stride: int = 0
    """Positions from one window of held-out text to the next; 0: side by side."""


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
        stride=scene.stride,
    )


def packed_stream(scene: Scene) -> PackedStream:
    """Packed rows of conversations or pairs."""
    train = scene.recipe.train
    rows = train.batch_tokens // train.seq_len
    return PackedStream(sequences_of(scene).train, train.seq_len, rows, train.seed)


def chat_stream(scene: Scene) -> PackedStream | ReplayStream:
    """Packed conversations, with rows of `data.replay` among them where it is given."""
    recipe, replay, packed = scene.recipe, sequences_of(scene).replay, packed_stream(scene)
    if replay is None:
        return packed
    text = _rows_of(recipe, replay, packed.rows, derived_seed(recipe.train.seed, 1))
    return ReplayStream(packed, text, recipe.data.replay_share)


def packing_of(stream: Stream) -> list[str]:
    """What a person should know of packed rows; nothing of other streams."""
    packed = stream.packed if isinstance(stream, ReplayStream) else stream
    if not isinstance(packed, PackedStream):
        return []
    sequences = packed.sequences
    learned = int((sequences.mask[:] > 0).sum()) / max(1, len(sequences.mask))
    what = "pairs" if sequences.bundle_size > 1 else "sequences"
    told = (
        f"{len(sequences):,} {what} in {packed.rows_per_epoch:,} rows of {packed.seq_len}:"
        f" {packed.padding:.1%} padding, {learned:.0%} of the tokens learned"
    )
    shared = isinstance(stream, ReplayStream)
    return [told + (", replayed text beside them" if shared else "")]


def held_out_sequences(scene: Scene) -> Iterator[Batch]:
    """The held-out sequences, packed."""
    recipe, held_out = scene.recipe, sequences_of(scene).val
    if held_out is None:
        return iter(())
    size, limit = recipe.eval.micro_batch_size, recipe.eval.windows
    return packed_windows(held_out, recipe.train.seq_len, size, limit)


def preference_stream(scene: Scene) -> PackedStream | WithReferencePoint:
    """Packed pairs, or labelled completions; for kto with their reference point."""
    stream, dataset = packed_stream(scene), sequences_of(scene)
    if scene.recipe.preference.loss != "kto" or scene.model is None:
        return stream
    rows = scene.recipe.eval.micro_batch_size
    mismatched = dataset.mismatched["train"]
    return WithReferencePoint(stream, mismatched, scene.model, scene.runtime, rows)


def held_out_preferences(scene: Scene) -> Iterator[Batch]:
    """The held-out pairs, packed; kto's reference point is taken over all that are measured."""
    found = held_out_sequences(scene)
    apart = sequences_of(scene).mismatched.get("val")
    if scene.recipe.preference.loss != "kto" or scene.model is None or apart is None:
        yield from found
        return
    recipe = scene.recipe
    size, limit = recipe.eval.micro_batch_size, recipe.eval.windows
    batches = packed_windows(apart, recipe.train.seq_len, size, limit)
    point = shift(scene.model, batches, scene.runtime)
    for batch in found:
        yield with_point(batch, point)


def distill_stream(scene: Scene) -> RowStream:
    """Rows of text, or packed conversations."""
    chats = isinstance(scene.dataset, SequenceDataset)
    return packed_stream(scene) if chats else token_stream(scene)


def held_out_distill(scene: Scene) -> Iterator[Batch]:
    """The held-out text, or conversations."""
    chats = isinstance(scene.dataset, SequenceDataset)
    return held_out_sequences(scene) if chats else held_out_windows(scene)


def preference(scene: Scene) -> Objective:
    """DPO and its kin."""
    return Preference(scene.recipe.preference)


def reward(scene: Scene) -> Objective:
    """A head that scores a sequence."""
    return Reward(scene.recipe.model.d_model)


def distill(scene: Scene) -> Objective:
    """The divergence from a teacher."""
    if scene.reference is None:
        raise TypeError("stage distill was given no teacher")
    return Distill(scene.reference, scene.recipe.distill, byte_lengths(scene.dataset))


def next_token(scene: Scene) -> Objective:
    """The nats of what follows, and the bits of each byte where a tokenizer knows them."""
    return NextToken(byte_lengths(scene.dataset))


def byte_lengths(dataset: AnyDataset) -> torch.Tensor | None:
    """(vocab_size,) int64 the bytes of each id; None where no tokenizer tells."""
    if dataset.tokenizer is None:
        return None
    return torch.from_numpy(dataset.tokenizer.byte_lengths()).long()


def rollout_stream(scene: Scene) -> RolloutStream:
    """Completions of prompts, judged."""
    recipe, dataset = scene.recipe, scene.dataset
    if not isinstance(dataset, PromptDataset):
        raise TypeError(f"stage {recipe.stage} was given {type(dataset).__name__}")
    objective = scene.objective if isinstance(scene.objective, Policy) else None
    score = scorer(scene) if recipe.rollout.reward_model and scene.model is not None else None
    return RolloutStream(
        recipe, dataset, scene.runtime, scene.model, objective, scene.reference, score
    )


def scorer(scene: Scene) -> Score:
    """What the run `rollout.reward_model` says of sequences of ids."""
    # Above the stages, which it builds models for.
    from sparrowlm.train.reference import load_frozen

    recipe, runtime = scene.recipe, scene.runtime
    name = recipe.rollout.reward_model
    model = load_frozen(name, "rollout.reward_model", scene.dataset, runtime)
    run, step = find_run(Path(name))
    if run.recipe().stage != "reward":
        raise RunError("is no reward model", where=name, fix='train one with stage = "reward"')
    if model.config.max_seq_len < recipe.train.seq_len:
        raise ConfigError(
            f"reads {model.config.max_seq_len} tokens, and a completion may have"
            f" {recipe.train.seq_len} with its prompt",
            where="rollout.reward_model",
            fix=f"set train.seq_len = {model.config.max_seq_len}",
        )
    judge = Reward(model.config.d_model)
    judge.load_state_dict(run.load(step).under("objective/"))
    judge.to(runtime.device, runtime.weight_dtype)
    return partial(scores_of, judge, model, runtime, recipe.eval.micro_batch_size)


def policy(scene: Scene) -> Objective:
    """A policy gradient on what was written."""
    recipe = scene.recipe
    kind = "ppo" if recipe.stage == "ppo" else recipe.policy.loss
    return Policy(kind, recipe.policy, recipe.rollout.max_tokens, recipe.model.d_model)


def no_batches(scene: Scene) -> Iterator[Batch]:
    """Nothing: what is held out is answered (`RolloutStream.measure`), not read."""
    return iter(())


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
    "sft": Stage(chat_stream, held_out_sequences, next_token),
    "dpo": Stage(preference_stream, held_out_preferences, preference),
    "reward": Stage(packed_stream, held_out_sequences, reward),
    "distill": Stage(distill_stream, held_out_distill, distill),
    "grpo": Stage(rollout_stream, no_batches, policy),
    "ppo": Stage(rollout_stream, no_batches, policy),
}
