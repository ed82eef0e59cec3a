"""A recipe becomes a run, and a run becomes something to write with."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sparrowlm import files
from sparrowlm.checkpoint import Checkpoint, RunFolder, find_run
from sparrowlm.config import Recipe, check_lora, check_numbers, dump_recipe, learns_to_answer
from sparrowlm.data.mixture import contaminations, left_out
from sparrowlm.data.sequences import AnyDataset, SequenceDataset
from sparrowlm.data.shards import Dataset, named_dataset
from sparrowlm.errors import RunError, TokenizerError
from sparrowlm.infer.engine import Engine
from sparrowlm.infer.sampling import Sampling
from sparrowlm.model.count import flops_per_token
from sparrowlm.model.transformer import Transformer
from sparrowlm.report.html import write_report
from sparrowlm.report.sinks import forwarding
from sparrowlm.runtime import Runtime, detect, machine, matmul_rate
from sparrowlm.share.adapters import is_peft, keep_adapter, with_adapter
from sparrowlm.text.chat import ChatFormat
from sparrowlm.text.tokenizer import Tokenizer, load_tokenizer
from sparrowlm.train.asked import FILE as ASKED
from sparrowlm.train.asked import asked_of, pinned
from sparrowlm.train.build import (
    Parts,
    build,
    length_of,
    load_weights,
    resolve_recipe,
    total_steps,
)
from sparrowlm.train.distributed import attempt, barrier, process_group
from sparrowlm.train.opening import (
    dataset_of,
    inherit,
    open_folder,
    planned_vocabulary,
)
from sparrowlm.train.plan import Plan, plan_of
from sparrowlm.train.reference import reference_of, referenced, same_vocabulary
from sparrowlm.train.resume import as_begun, resume_point
from sparrowlm.train.samples import Write, writer
from sparrowlm.train.sitting import Cadences, Display, Sitting
from sparrowlm.train.stages import STAGES, Scene, packing_of
from sparrowlm.train.summary import summarize

Progress = Callable[[str, int, int], None]
Made = TypeVar("Made")


def train(
    recipe: Recipe,
    out: Path,
    display: Display,
    *,
    resume: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    progress: Progress | None = None,
    dataset_folder: Path | None = None,
) -> dict[str, Any] | None:
    """Train by a recipe, from the start or from where `out` stands.

    Args:
        recipe: as read; derived settings are filled in here.
        out: the run folder.
        display: shows the run; called on rank 0 only.
        resume: go on with the run in `out`.
        should_stop: asked after every step; True saves and returns.
        progress: told how far preparing text is: what, done, total.
        dataset_folder: prepared already; otherwise `data.path` is opened or prepared.

    Returns:
        The summary, or None where the run was asked to stop before its end.

    Raises:
        SparrowError: whatever a person or the machine has to mend.
    """
    check_numbers(recipe)
    runtime = detect(recipe.train.device, recipe.train.precision)
    run = RunFolder(out)
    # A worker that torchrun starts again goes on by itself.
    resume = resume or (attempt() > 0 and run.exists)
    if run.exists and (project := run.imported_from()):
        raise RunError(
            f"was imported from {project}, and is a start alone",
            where=str(out),
            fix="train from it: choose another --out, and set init.from to this one",
        )
    if run.exists and not resume:
        raise RunError(
            "holds a run already", where=str(out), fix="add --resume, or choose another --out"
        )
    with process_group(runtime), run.held() if runtime.is_main else nullcontext():
        return _train(recipe, run, runtime, display, resume, should_stop, progress, dataset_folder)


def _train(
    recipe: Recipe,
    run: RunFolder,
    runtime: Runtime,
    display: Display,
    resume: bool,
    should_stop: Callable[[], bool],
    progress: Progress | None,
    dataset_folder: Path | None,
) -> dict[str, Any] | None:
    """`train`, once the ranks have met. What refers to their group ends with this function."""
    if resume and run.exists:
        recipe = as_begun(recipe, run)
    recipe = inherit(recipe, run if resume and run.exists else None)
    check_lora(recipe)
    length_of(recipe)  # a mistake in these is told before text is prepared
    Cadences.of(recipe)
    dataset = dataset_of(recipe, runtime, progress, dataset_folder)
    recipe = resolve_recipe(recipe, dataset.vocab_size, runtime)
    checkpoint, changes = (
        resume_point(run, recipe, dataset, runtime) if resume else (None, _first_told(dataset))
    )
    weights = _weights(run, recipe, dataset, checkpoint)
    asked = asked_of(recipe, run if checkpoint else None)
    barrier(runtime)  # nobody writes before all have read
    dataset = referenced(recipe, dataset, run, runtime, resuming=checkpoint is not None)
    exact = pinned(recipe, asked)
    reference = reference_of(exact, dataset, runtime)
    parts = build(exact, dataset, runtime, checkpoint, weights, should_stop, reference)
    write = writer(parts.model, dataset.tokenizer, recipe, runtime)
    barrier(runtime)  # all is well: from here on the folder holds a run
    if runtime.is_main:
        if asked:
            files.write_json(run.path / ASKED, asked)
        _open_folder(run, recipe, dataset, checkpoint, weights)
    barrier(runtime)
    log = partial(run.append, "metrics.jsonl")
    with forwarding(display, recipe, run.path, parts.trainer.state.step, log) as told:
        return _sit(parts, recipe, run, dataset, runtime, told, write, changes)


def _first_told(dataset: AnyDataset) -> list[str]:
    """What a person should hear of the data before the first step."""
    if isinstance(dataset, SequenceDataset):
        replayed = [] if dataset.replay is None else _first_told(dataset.replay)
        return [*dataset.description["notes"], *replayed]
    missing = left_out(dataset) if isinstance(dataset, Dataset) else []
    return [*missing, *contaminations(dataset)]


def _sit(
    parts: Parts,
    recipe: Recipe,
    run: RunFolder,
    dataset: AnyDataset,
    runtime: Runtime,
    display: Display,
    write: Write | None,
    changes: list[str],
) -> dict[str, Any] | None:
    """Run one sitting and close it."""
    dtype = runtime.autocast_dtype or runtime.weight_dtype
    ceiling = matmul_rate(runtime.device, dtype)
    plan = plan_of(recipe, runtime, ceiling, total_steps=parts.trainer.schedule.total)
    if runtime.is_main:
        display.start(
            plan.short(),
            total_steps=parts.trainer.schedule.total,
            seconds=length_of(recipe).amount if length_of(recipe).unit == "seconds" else 0.0,
        )
    sitting = Sitting(
        parts,
        recipe,
        run,
        dataset,
        runtime,
        display,
        write,
        flops_per_token=flops_per_token(recipe.model, recipe.train.seq_len, recipe.lora),
        ceiling=ceiling,
    )
    for message in [*changes, *packing_of(parts.trainer.stream)]:
        sitting.event(message)
    finished = sitting.run()
    if not runtime.is_main:
        return None
    if not finished:
        write_report(run.path)
        return None
    if recipe.lora.rank:
        for message in keep_adapter(run):
            sitting.event(message)
    summary = summarize(run, parts, dataset)
    files.write_json(run.path / "summary.json", summary)
    write_report(run.path)
    display.finish(summary)
    return summary


# What a machine can do in the time decides the shape: floating-point operations, then d_model,
# n_layers, n_heads, max_seq_len, dropout. Ten megabytes of text feed no larger model; a GPU passes
# over them many times, which dropout makes bearable.
QUICKSTART_SIZES = (
    (1e14, (192, 2, 3, 128, 0.0)),
    (1e15, (384, 6, 6, 256, 0.1)),
    (math.inf, (512, 8, 8, 512, 0.2)),
)


def quickstart_size(recipe: Recipe, seconds: float) -> Recipe:
    """The quickstart recipe with a model that this machine can train in the time."""
    runtime = detect(recipe.train.device, recipe.train.precision)
    rate = matmul_rate(runtime.device, runtime.autocast_dtype or runtime.weight_dtype)
    operations = rate * seconds
    shape = next(shape for limit, shape in QUICKSTART_SIZES if operations < limit)
    d_model, n_layers, n_heads, max_seq_len, dropout = shape
    model = replace(
        recipe.model,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        max_seq_len=max_seq_len,
        dropout=dropout,
    )
    return replace(recipe, model=model)


def plan_recipe(recipe: Recipe) -> tuple[Plan, Runtime, bool]:
    """Work out a recipe without touching its text.

    Args:
        recipe: as read.

    Returns:
        The plan, the runtime it is for, and whether the data was there to count epochs by.
    """
    check_numbers(recipe)
    recipe = inherit(recipe)
    check_lora(recipe)
    runtime = detect(recipe.train.device, recipe.train.precision)
    folder = named_dataset(recipe.data.path)
    dataset = open_folder(folder, recipe) if folder else None
    vocab_size = dataset.vocab_size if dataset else planned_vocabulary(recipe)
    resolved = resolve_recipe(recipe, vocab_size, runtime)
    rows = 0
    if dataset is not None:
        rows = STAGES[recipe.stage].stream(Scene(resolved, dataset, runtime)).rows_per_epoch
    rate = matmul_rate(runtime.device, runtime.autocast_dtype or runtime.weight_dtype)
    total = total_steps(resolved, rows)
    plan = plan_of(resolved, runtime, rate, total_steps=total)
    return plan, runtime, dataset is not None


def _open_folder(
    run: RunFolder,
    recipe: Recipe,
    dataset: AnyDataset,
    checkpoint: Checkpoint | None,
    weights: dict[str, Any] | None,
) -> None:
    """Write what a run knows before its first step, and cut its logs back to the checkpoint."""
    run.create()
    if dataset.tokenizer is not None:
        with files.publish(run.path / "tokenizer", replace=True) as work:
            dataset.tokenizer.save(work)
    facts = {"machine": machine(), "data": dataset.description}
    files.write_json(run.path / "machine.json", facts)
    run.cut_logs(checkpoint.state.log_bytes if checkpoint else {})
    (run.path / "summary.json").unlink(missing_ok=True)  # of a run that is longer now
    if recipe.lora.rank and checkpoint is None:
        run.save_base(weights or {}, str(_origin(recipe)))
    # Last: its presence says that a run was started here.
    files.write_text(run.path / "config.toml", dump_recipe(recipe))
    if checkpoint is not None:
        run.point(checkpoint.state)


def _weights(
    run: RunFolder, recipe: Recipe, dataset: AnyDataset, checkpoint: Checkpoint | None
) -> dict[str, Any] | None:
    """What `build` wants beside a checkpoint: the weights of the run that `init.from` names at the
    start, and at any step the base of a run that trains adapters."""
    if recipe.lora.rank and checkpoint is not None:
        return run.load_base()
    return None if checkpoint or not recipe.init.from_ else _first_weights(recipe, dataset)


def _origin(recipe: Recipe) -> Path:
    """The checkpoint that `init.from` means."""
    run, step = find_run(Path(recipe.init.from_))
    return run.folder(step)


def _first_weights(recipe: Recipe, dataset: AnyDataset) -> dict[str, Any]:
    """The weights of the run that `init.from` names.

    Raises:
        RunError: they were trained on another vocabulary, in which every id means something else.
    """
    run, step = find_run(Path(recipe.init.from_))
    same_vocabulary(run, dataset)
    return run.weights(step)


@dataclass(frozen=True)
class Loaded:
    """A trained run, ready to write."""

    model: Transformer
    tokenizer: Tokenizer
    recipe: Recipe
    runtime: Runtime
    step: int
    converses: bool = False
    """As of `converses`."""

    def write(self, prompt: str, sampling: Sampling) -> str:
        """The completion of a text."""
        return Engine(self.model, self.tokenizer, self.runtime).text(prompt, sampling)


def load_run(
    path: Path, device: str = "auto", precision: str = "auto", adapter: Path | None = None
) -> Loaded:
    """A run at its best step, or at the checkpoint that `path` names; nothing but the folder is
    needed.

    Args:
        path: a run folder or a checkpoint.
        device: auto, cpu, cuda or mps.
        precision: of products and cache.
        adapter: changes to put into it, as of `share.adapters.read_adapter`.

    Raises:
        RunError: no run there, no checkpoint in it, no tokenizer, or an adapter for another model.
    """
    run, step = find_run(path)
    recipe = run.recipe()
    if not (run.path / "tokenizer").is_dir():
        raise RunError(
            "has no tokenizer", where=str(run.path), why="it was trained on token ids alone"
        )
    runtime = detect(device, precision)
    model = Transformer(recipe.model)
    model.to(runtime.device, runtime.weight_dtype).eval()
    weights = run.weights(step)
    if adapter is not None:
        weights = with_adapter(weights, adapter)
    load_weights(model, weights)
    tokenizer = load_tokenizer(run.path / "tokenizer")
    return Loaded(model, tokenizer, recipe, runtime, step, converses(run, tokenizer, adapter))


def converses(run: RunFolder, tokenizer: Tokenizer, adapter: Path | None = None) -> bool:
    """Whether a model was taught to answer, so that it is talked with by turns; otherwise it only
    goes on with a text.

    It was where its last stage, or that of the adapter, trained on conversations. An imported model
    was where its tokenizer came with a chat template.
    """
    try:
        ChatFormat(tokenizer)
    except TokenizerError:
        return False  # it cannot even write a turn
    taught = learns_to_answer(run.recipe())
    if not taught and run.imported_from():
        taught = bool(tokenizer.chat_template)
    if not taught and adapter is not None and not is_peft(adapter):
        return converses(find_run(adapter)[0], tokenizer)
    return taught
