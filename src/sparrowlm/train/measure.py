"""The held-out split of a run, or those of its mixture, in numbers for the log."""

from __future__ import annotations

import math
from dataclasses import replace

from sparrowlm.config import Recipe
from sparrowlm.data.mixture import Mixture
from sparrowlm.data.sequences import AnyDataset, SequenceDataset
from sparrowlm.evaluate.likelihood import Sums, evaluate
from sparrowlm.infer.rollouts import RolloutStream
from sparrowlm.runtime import Runtime
from sparrowlm.train.build import Parts
from sparrowlm.train.stages import STAGES

Means = dict[str, float | None]
LOGGED = {
    name: f"val_{name}"
    for name in ("loss", "bits_per_byte", "accuracy", "margin", "cross_entropy", "divergence")
}
"""An objective's metric and its name in the log."""


def measure(parts: Parts, recipe: Recipe, dataset: AnyDataset, runtime: Runtime) -> Means:
    """Measure what is held out, on all ranks together.

    Of a mixture every source is measured, as `val_loss/NAME`, and `val_loss` is what a token drawn
    by the weights costs: the sums of each source are scaled so that it counts as many tokens as
    its weight says. `val_bits_per_byte` is the same tokens' bits over their bytes. Of text that is
    replayed beside conversations, `val_loss/replay` is logged.

    Returns:
        Values by their names in the log; empty where nothing is held out.
    """

    if isinstance(parts.trainer.stream, RolloutStream):
        return parts.trainer.stream.measure()

    def sums(own: AnyDataset, stage: str = recipe.stage) -> Sums:
        batches = STAGES[stage].held_out(replace(parts.scene, recipe=recipe, dataset=own))
        return evaluate(parts.objective, parts.model, batches, runtime)

    if isinstance(dataset, SequenceDataset) and dataset.replay is not None:
        text = means(sums(dataset.replay, "pretrain"))
        return means(sums(dataset)) | {f"{key}/replay": value for key, value in text.items()}
    if not isinstance(dataset, Mixture):
        return means(sums(dataset))
    found = {part.name: sums(part.dataset) for part in dataset.parts}
    weights = {part.name: part.weight for part in dataset.parts}
    return means(weighted(found, weights)) | {
        f"{key}/{name}": value for name, own in found.items() for key, value in means(own).items()
    }


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
