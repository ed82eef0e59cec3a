"""What a finished run says of what it held out: the figures of its own log, measured again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sparrowlm.checkpoint import RunFolder
from sparrowlm.config import Recipe
from sparrowlm.data.sequences import AnyDataset
from sparrowlm.data.shards import Dataset, Tokens
from sparrowlm.errors import ConfigError
from sparrowlm.evaluate.corpus import Reading, describe
from sparrowlm.evaluate.figures import Figure, Measured, figures_of
from sparrowlm.infer.rollouts import RolloutStream
from sparrowlm.model.transformer import Transformer
from sparrowlm.objectives.policy import Policy
from sparrowlm.runtime import Runtime
from sparrowlm.train.asked import asked_of, pinned
from sparrowlm.train.measure import LOGGED, stride_of, sums_of
from sparrowlm.train.opening import dataset_of
from sparrowlm.train.reference import reference_of, referenced
from sparrowlm.train.resume import check_data
from sparrowlm.train.stages import STAGES, Scene

Progress = Callable[[str, int, int], None]


def held_out(
    run: RunFolder,
    step: int,
    model: Transformer,
    runtime: Runtime,
    reading: Reading,
    progress: Progress | None = None,
) -> list[Measured]:
    """Measure the run's own held-out split, with its own objective, on the same rows as training
    did; of a mixture its sources as well.

    Args:
        run: with what it was trained on still in its place.
        step: of the checkpoint that `model` is.
        model: on its device, in evaluation mode.
        runtime: where.
        reading: how much, and with what context; `seq_len`, `rows` and, where all is read in the
            run's own windows, `stride` 0 are the run's own.
        progress: told how far preparing text is.

    Raises:
        ConfigError: the run has no data, or nothing is held out.
        RunError: its data is another one now.
    """
    recipe = run.recipe()
    if not recipe.data.path and not recipe.data.mix:
        raise ConfigError(
            "names no data of its own",
            where=str(run.path),
            why="it was imported",
            fix="name what to measure it on: --data FILE",
        )
    whole = recipe.eval.whole_at_end and not reading.windows
    if whole and not reading.stride and reading.seq_len in (0, recipe.train.seq_len):
        reading = replace(reading, stride=stride_of(recipe))
    checkpoint = run.load(step)
    dataset = dataset_of(recipe, runtime, progress)
    if checkpoint.state.data_fingerprint:
        check_data(checkpoint.state, dataset, run.path)
    scene = _scene(recipe, dataset, run, model, runtime, reading)
    objective = STAGES[recipe.stage].objective(scene).to(runtime.device, runtime.weight_dtype)
    objective.load_state_dict(checkpoint.under("objective/"))
    if recipe.stage in ("grpo", "ppo"):
        return [_answered(replace(scene, objective=objective))]
    found = sums_of(scene, objective, model)
    if not any(found.values()):
        raise ConfigError(
            "held nothing out", where=str(run.path), fix="name what to measure it on: --data FILE"
        )
    measured = []
    for name, own in found.items():
        figures = {key: one for key, one in figures_of(own).items() if key in LOGGED}
        stage = "pretrain" if name == "replay" else recipe.stage
        how = describe(scene.recipe.train.seq_len, reading, stage, figures)
        label = f"held out, {name}" if name else "held out"
        measured += [Measured(label, how, figures, data=dataset.fingerprint)]
    return [one for one in measured if one.figures]


def held_out_text(
    run: RunFolder, runtime: Runtime, progress: Progress | None = None
) -> Tokens | None:
    """The tokens that a run of text held out, to compare with what it writes; None where it learned
    from several sources or to answer, names no data or held nothing out.

    Raises:
        UserError: its data is not where it was.
    """
    recipe = run.recipe()
    if recipe.stage != "pretrain" or not recipe.data.path:
        return None
    dataset = dataset_of(recipe, runtime, progress)
    return dataset.val if isinstance(dataset, Dataset) else None


def _scene(
    recipe: Recipe,
    dataset: AnyDataset,
    run: RunFolder,
    model: Transformer,
    runtime: Runtime,
    reading: Reading,
) -> Scene:
    """What the stage measures by, its reference or teacher included."""
    seq_len = reading.seq_len or recipe.train.seq_len
    rows = reading.rows or recipe.eval.micro_batch_size
    recipe = replace(
        recipe,
        train=replace(recipe.train, seq_len=seq_len),
        eval=replace(recipe.eval, windows=reading.windows, micro_batch_size=rows),
    )
    dataset = referenced(recipe, dataset, run, runtime, resuming=True)
    recipe = pinned(recipe, asked_of(recipe, run))
    reference = reference_of(recipe, dataset, runtime)
    return Scene(recipe, dataset, runtime, model, reference, stride=reading.stride)


def _answered(scene: Scene) -> Measured:
    """The rewards of held-out prompts, answered greedily."""
    policy = scene.objective if isinstance(scene.objective, Policy) else None
    stream = STAGES[scene.recipe.stage].stream(replace(scene, objective=policy))
    assert isinstance(stream, RolloutStream), "of stages grpo and ppo"
    try:
        found = stream.measure()
    finally:
        stream.close()
    if not found:
        raise ConfigError("no prompt is held out", where="data.val_fraction")
    count = min(scene.recipe.rollout.eval_prompts, len(stream.dataset.val))
    figures = {
        name.removeprefix("val_"): Figure(value * count, count)
        for name, value in found.items()
        if value is not None
    }
    how = f"{count} prompts, answered greedily"
    return Measured("held out", how, figures, data=scene.dataset.fingerprint)
