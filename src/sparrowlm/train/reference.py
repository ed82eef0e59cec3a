"""What a policy is held to, or a student learns from: a run, frozen.

A teacher and the reference of a rollout are asked at every step and stay in memory. The reference
of stage dpo says the same of the same pairs every time, so it is asked once, before the first
step, and then let go; what it said is kept in the run:

    reference/
      train.f32  val.f32            a log-probability of every id, 0 where it is not to be learned
      mismatched-train.f32, mismatched-val.f32      kto: of `data/mismatch.py`'s sequences
      reference.json                which data, which weights
      manifest.json                 hashes, written last
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparrowlm import files
from sparrowlm.checkpoint import RunFolder, find_run, fingerprint
from sparrowlm.config import Recipe
from sparrowlm.data.mismatch import mismatched
from sparrowlm.data.packing import packed_batch
from sparrowlm.data.sequences import AnyDataset, SequenceDataset, Sequences, pack
from sparrowlm.errors import ConfigError, RunError
from sparrowlm.model.transformer import Transformer
from sparrowlm.objectives.preference import WITHOUT_REFERENCE
from sparrowlm.objectives.sequences import target_logprobs
from sparrowlm.runtime import Runtime, all_sum
from sparrowlm.text.tokenizer import load_tokenizer
from sparrowlm.train.build import load_weights
from sparrowlm.train.distributed import barrier

COLUMN = "reference_logprob"


def reference_of(recipe: Recipe, dataset: AnyDataset, runtime: Runtime) -> Transformer | None:
    """The frozen model that a stage asks at every step; None where it asks none.

    Raises:
        ConfigError: the setting that names it is empty.
        RunError: no run there, or one with another vocabulary.
    """
    if recipe.stage == "distill":
        teacher = load_frozen(recipe.distill.teacher, "distill.teacher", dataset, runtime)
        if teacher.config.vocab_size != recipe.model.vocab_size:
            raise ConfigError(
                f"is {recipe.model.vocab_size}, and the teacher's is {teacher.config.vocab_size}",
                where="model.vocab_size",
                fix=f"set it to {teacher.config.vocab_size}",
            )
        return teacher
    if recipe.stage in ("grpo", "ppo") and recipe.policy.kl_weight:
        return load_frozen(recipe.init.from_, "init.from", dataset, runtime)
    return None


def load_frozen(where: str, setting: str, dataset: AnyDataset, runtime: Runtime) -> Transformer:
    """A run's model at its best step, on the device, without dropout or gradients.

    Raises:
        ConfigError: `setting` is empty.
        RunError: no run there, or one with another vocabulary.
    """
    if not where:
        raise ConfigError("is empty", where=setting, fix="name a run")
    run, step = find_run(Path(where))
    same_vocabulary(run, dataset)
    model = Transformer(run.recipe().model)
    model.to(runtime.device, runtime.weight_dtype)
    load_weights(model, run.weights(step))
    return model.eval().requires_grad_(False)


def same_vocabulary(run: RunFolder, dataset: AnyDataset) -> None:
    """Refuse a run that was trained on other ids than the data's.

    Raises:
        RunError: its vocabulary is another one, in which every id means something else.
    """
    folder = run.path / "tokenizer"
    if dataset.tokenizer is None or not folder.is_dir():
        return
    before, now = load_tokenizer(folder).fingerprint, dataset.tokenizer.fingerprint
    if before != now:
        raise RunError(
            f"has another vocabulary than the data (fingerprint {before[:12]}, now {now[:12]})",
            where=str(run.path),
            why="a token would mean to the weights what another one meant in training",
            fix=f'set tokenizer.kind = "folder" and tokenizer.path = "{folder}"',
        )


def referenced(
    recipe: Recipe, dataset: AnyDataset, run: RunFolder, runtime: Runtime, *, resuming: bool
) -> AnyDataset:
    """The dataset with what the reference says of it in column "reference_logprob"; as it is
    where the stage asks no such thing.

    Called by all ranks, which share the work.

    Args:
        recipe: resolved.
        dataset: of the run.
        run: keeps what was said.
        runtime: where.
        resuming: from a checkpoint; then what is kept holds, whatever `init.from` has become.

    Raises:
        ConfigError: `init.from` is empty.
        RunError: no run there, or one with another vocabulary.
    """
    if recipe.stage != "dpo" or recipe.preference.loss in WITHOUT_REFERENCE:
        return dataset
    if not isinstance(dataset, SequenceDataset):
        raise TypeError(f"stage dpo was given {type(dataset).__name__}")
    facts: dict[str, Any] = {"data": dataset.fingerprint}
    if recipe.preference.loss == "kto":
        ring = (recipe.train.seq_len, recipe.train.seed)
        dataset = with_mismatched(dataset, *ring)
        facts["mismatched"] = list(ring)
    splits, folder = splits_of(dataset), run.path / "reference"
    facts["ids"] = {name: len(split.ids) for name, split in splits.items()}
    kept = _kept(folder)
    if not (resuming and {**kept, "weights": None} == {**facts, "weights": None}):
        reference = load_frozen(recipe.init.from_, "init.from", dataset, runtime)
        facts["weights"] = fingerprint(reference.state_dict())
        if kept != facts:
            rows, seq_len = recipe.eval.micro_batch_size, recipe.train.seq_len
            said = {
                name: logprobs_of(reference, split, seq_len, rows, runtime)
                for name, split in splits.items()
            }
            if runtime.is_main:
                _keep(folder, facts, said)
            barrier(runtime)
    return with_splits(
        dataset, {name: _with_column(split, folder, name) for name, split in splits.items()}
    )


def with_mismatched(dataset: SequenceDataset, seq_len: int, seed: int) -> SequenceDataset:
    """The dataset with the sequences that KTO's reference point is taken over."""
    splits = {"train": dataset.train, "val": dataset.val}
    found = {
        name: mismatched(split, seq_len, seed)
        for name, split in splits.items()
        if split is not None and len(split)
    }
    return replace(dataset, mismatched=found)


def splits_of(dataset: SequenceDataset) -> dict[str, Sequences]:
    """All sequences of a dataset, by the names of their files in `reference/`."""
    splits = {"train": dataset.train, "val": dataset.val}
    splits |= {f"mismatched-{name}": split for name, split in dataset.mismatched.items()}
    return {name: split for name, split in splits.items() if split is not None and len(split)}


def with_splits(dataset: SequenceDataset, splits: dict[str, Sequences]) -> SequenceDataset:
    """The dataset with its sequences replaced by those of `splits_of`'s names."""
    return replace(
        dataset,
        train=splits["train"],
        val=splits.get("val", dataset.val),
        mismatched={name: splits[f"mismatched-{name}"] for name in dataset.mismatched},
    )


@torch.no_grad()
def logprobs_of(
    model: Transformer, sequences: Sequences, seq_len: int, rows: int, runtime: Runtime
) -> np.ndarray:
    """What a model says of every id that is to be learned, in packed batches; ranks share them.

    Args:
        model: on its device, in evaluation mode.
        sequences: one split.
        seq_len: T.
        rows: B.
        runtime: where.

    Returns:
        (n,) float32 for `Sequences.with_columns`; 0 where an id is not to be learned.
    """
    said = np.zeros(len(sequences.ids), dtype=np.float32)
    packed = pack(sequences, seq_len, seed=0)
    for number, first in enumerate(range(0, len(packed), rows)):
        if number % runtime.world_size != runtime.rank:
            continue
        chosen = packed[first : first + rows]
        found = [[sequences.bundle(one) for one in row] for row in chosen]
        batch = packed_batch(found, seq_len).to(runtime.device)
        with runtime.autocast():
            logprob = target_logprobs(model, model(batch.tokens, batch.segments).hidden, batch)
        for row, values in zip(chosen, logprob.float().cpu().numpy(), strict=True):
            _put_back(said, values, sequences, row)
    return all_sum(torch.from_numpy(said).to(runtime.device)).cpu().numpy()


def _put_back(said: np.ndarray, values: np.ndarray, sequences: Sequences, row: list[int]) -> None:
    """Write a packed row's values (T,) to where its ids stand in the split: `packed_batch`,
    backwards."""
    start, size = 0, sequences.bundle_size
    for bundle in row:
        for number in range(bundle * size, (bundle + 1) * size):
            first, last = int(sequences.starts[number]), int(sequences.starts[number + 1])
            said[first + 1 : last] = values[start : start + last - first - 1]
            start += last - first - 1


def _kept(folder: Path) -> dict[str, Any]:
    """The facts of what was kept before; nothing where it is not whole."""
    if not (folder / files.MANIFEST).is_file():
        return {}
    try:
        files.verify(folder)
    except RunError:
        return {}
    return files.read_json(folder / "reference.json")


def _keep(folder: Path, facts: dict[str, Any], said: dict[str, np.ndarray]) -> None:
    with files.publish(folder, replace=True) as work:
        for name, values in said.items():
            files.write_bytes(work / f"{name}.f32", values.astype("<f4").tobytes())
        files.write_json(work / "reference.json", facts)


def _with_column(split: Sequences, folder: Path, name: str) -> Sequences:
    return split.with_columns({COLUMN: np.fromfile(folder / f"{name}.f32", dtype="<f4")})
