"""The held-out split of a run, or those of its mixture, in numbers for the log."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import nn

from sparrowlm.batch import Objective
from sparrowlm.config import Recipe, learns_to_answer
from sparrowlm.data.mixture import Mixture
from sparrowlm.data.sequences import AnyDataset, SequenceDataset
from sparrowlm.evaluate.likelihood import Sums, evaluate
from sparrowlm.infer.rollouts import RolloutStream
from sparrowlm.runtime import Runtime
from sparrowlm.train.build import Parts
from sparrowlm.train.stages import STAGES, Scene

Means = dict[str, float | None]
LOGGED = {
    name: f"val_{name}"
    for name in ("loss", "bits_per_byte", "accuracy", "margin", "cross_entropy", "divergence")
}
"""An objective's metric and its name in the log."""


def measure(
    parts: Parts, recipe: Recipe, dataset: AnyDataset, runtime: Runtime, stride: int = 0
) -> Means:
    """Measure what is held out, on all ranks together; text in windows `stride` tokens apart, or
    side by side.

    Of a mixture every source is measured, as `val_loss/NAME`, and `val_loss` is what a token drawn
    by the weights costs: the sums of each source are scaled so that it counts as many tokens as
    its weight says. `val_bits_per_byte` is the same tokens' bits over their bytes. Of text that is
    replayed beside conversations, `val_loss/replay` is logged.

    Returns:
        Values by their names in the log; empty where nothing is held out.
    """
    if isinstance(parts.trainer.stream, RolloutStream):
        return parts.trainer.stream.measure()
    scene = replace(parts.scene, recipe=recipe, dataset=dataset, runtime=runtime, stride=stride)
    return {
        f"{key}/{name}" if name else key: value
        for name, own in sums_of(scene, parts.objective, parts.model).items()
        for key, value in means(own).items()
    }


def stride_of(recipe: Recipe) -> int:
    """Tokens from one window to the next where `eval.whole_at_end` measures text; 0: side by
    side, as conversations always are."""
    seq_len, overlap = recipe.train.seq_len, recipe.eval.overlap
    if not overlap or learns_to_answer(recipe):
        return 0
    return max(1, round(seq_len * (1 - overlap)))


def sums_of(scene: Scene, objective: Objective, model: nn.Module) -> dict[str, Sums]:
    """What an objective says of the held-out split, under "": of a mixture that of its sources
    by weight, and theirs under their names; under "replay" that of text beside conversations."""
    dataset = scene.dataset

    def sums(own: AnyDataset, stage: str = scene.recipe.stage) -> Sums:
        batches = STAGES[stage].held_out(replace(scene, dataset=own))
        return evaluate(objective, model, batches, scene.runtime)

    if isinstance(dataset, SequenceDataset) and dataset.replay is not None:
        return {"": sums(dataset), "replay": sums(dataset.replay, "pretrain")}
    if not isinstance(dataset, Mixture):
        return {"": sums(dataset)}
    found = {part.name: sums(part.dataset) for part in dataset.parts}
    weights = {part.name: part.weight for part in dataset.parts}
    return {"": weighted(found, weights), **found}


def weighted(found: dict[str, Sums], weights: dict[str, float]) -> Sums:
    """The sums of several sources as if each counted `weight` tokens.

    >>> two = {"a": {"loss": (30.0, 10.0)}, "b": {"loss": (20.0, 20.0)}}
    >>> weighted(two, {"a": 3.0, "b": 1.0})
    {'loss': (10.0, 4.0)}
    """
    total: Sums = {}
    for name, own in found.items():
        tokens = own["loss"][1] if "loss" in own else 0
        if not tokens:
            continue
        scale = weights[name] / tokens
        for metric, (value, count) in own.items():
            before = total.get(metric, (0.0, 0.0))
            total[metric] = (before[0] + scale * value, before[1] + scale * count)
    return total


def means(found: Sums) -> Means:
    """Sums divided, under their names in the log; None where that is no number."""
    return {LOGGED[name]: mean(*pair) for name, pair in found.items() if name in LOGGED}


def mean(total: float, count: float) -> float | None:
    """A sum divided; None where that is no number."""
    return finite(total / count) if count else None


def finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
