"""From a recipe to what the loop needs: derived settings, model, optimizers, schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from sparrowlm.batch import Objective
from sparrowlm.checkpoint import Checkpoint, State
from sparrowlm.config import ModelConfig, Recipe, check_lora, resolve_model
from sparrowlm.config.units import Span, parse_span
from sparrowlm.data.sequences import AnyDataset
from sparrowlm.errors import ConfigError, RunError
from sparrowlm.model.lora import adapt, trained_tensors
from sparrowlm.model.transformer import Transformer
from sparrowlm.optim import Optimizers, Schedule, build_optimizers
from sparrowlm.runtime import Runtime
from sparrowlm.train.compiler import compile_fault
from sparrowlm.train.distributed import wrap
from sparrowlm.train.plan import fitting_rows
from sparrowlm.train.stages import STAGES, Scene
from sparrowlm.train.trainer import LOSS_SCALE_START, Stateful, Step, Trainer

LENGTH_UNITS = ("steps", "epochs", "tokens", "seconds")


def length_of(recipe: Recipe) -> Span:
    """`train.length`, read."""
    return parse_span(recipe.train.length, key="train.length", units=LENGTH_UNITS)


def resolve_recipe(recipe: Recipe, vocab_size: int, runtime: Runtime) -> Recipe:
    """The recipe with every derived setting filled in: what `config.toml` holds.

    Args:
        recipe: as read.
        vocab_size: of the data's tokenizer.
        runtime: where it is to run.

    Raises:
        ConfigError: sizes that do not fit together.
    """
    model = resolve_model(recipe.model, vocab_size)
    seq_len = recipe.train.seq_len or model.max_seq_len
    _check_batch(recipe, model, seq_len, runtime)
    train = replace(recipe.train, seq_len=seq_len, precision=runtime.precision)
    optim = recipe.optim
    if length_of(recipe).unit == "seconds":
        # A cosine needs its end from the start, and minutes become steps only near theirs.
        optim = replace(optim, schedule="wsd")
    recipe = replace(recipe, model=model, train=train, optim=optim)
    micro = train.micro_batch_size or fitting_rows(recipe, runtime)
    rows = -(-train.batch_tokens // seq_len // runtime.world_size)
    train = replace(train, micro_batch_size=min(micro, rows))
    if train.compile == "auto":
        # Groups of tokens change size at every step, and only one kernel for all hides that.
        steady = not model.n_experts or runtime.precision == "bfloat16"
        # A rollout is looked at before it is trained on, and both must compute the same.
        steady = steady and recipe.stage not in ("grpo", "ppo")
        train = replace(train, compile="on" if compile_pays(runtime) and steady else "off")
    held_out = replace(recipe.eval, micro_batch_size=recipe.eval.micro_batch_size or micro)
    return replace(recipe, train=train, eval=held_out)


def compile_pays(runtime: Runtime) -> bool:
    """Whether `train.compile = "auto"` compiles: on a GPU whose compiler is there.

    On two CPU cores the products take most of a step, compiling takes a minute, and it wins too
    little of that back (docs/performance.md); "on" still compiles there.
    """
    return runtime.device.type == "cuda" and not compile_fault(runtime.device)


def _check_batch(recipe: Recipe, model: ModelConfig, seq_len: int, runtime: Runtime) -> None:
    if seq_len > model.max_seq_len:
        raise ConfigError(
            f"{seq_len} is longer than the model's context of {model.max_seq_len}",
            where="train.seq_len",
            fix="lower it, or raise model.max_seq_len",
        )
    tokens = recipe.train.batch_tokens
    if tokens < seq_len * runtime.world_size or tokens % seq_len:
        near = max(1, runtime.world_size, round(tokens / seq_len)) * seq_len
        raise ConfigError(
            f"{tokens} tokens are not a whole number of rows of {seq_len}, one or more for each"
            f" of {runtime.world_size} ranks"
            if runtime.world_size > 1
            else f"{tokens} tokens are not a whole number of rows of {seq_len}",
            where="train.batch_tokens",
            fix=f"set it to {near}",
        )


@dataclass(frozen=True)
class Parts:
    """A model and all that trains it."""

    model: Transformer
    objective: Objective
    trainer: Trainer
    scene: Scene


def build(
    recipe: Recipe,
    dataset: AnyDataset,
    runtime: Runtime,
    checkpoint: Checkpoint | None = None,
    weights: dict[str, torch.Tensor] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    reference: Transformer | None = None,
) -> Parts:
    """Put a resolved recipe together.

    Args:
        recipe: from `resolve_recipe`.
        dataset: what it is trained on.
        runtime: where.
        checkpoint: where to go on; None starts at step 0.
        weights: a model to start from at step 0, of the same shape; with `lora.rank`, what is
            adapted, at any step.
        should_stop: see `Trainer`.
        reference: see `Scene`.
    """
    stage = STAGES[recipe.stage]
    model = _model(recipe, runtime, checkpoint, weights)
    scene = Scene(recipe, dataset, runtime, model, reference)
    objective = stage.objective(scene).to(runtime.device, runtime.weight_dtype)
    step = Step(model, objective)
    optimizers = _optimizers(step, recipe, runtime)
    state = _first_state(recipe, runtime)
    if checkpoint is not None:
        restore(optimizers, checkpoint)
        objective.load_state_dict(checkpoint.under("objective/"))
        state = checkpoint.state
    stream = stage.stream(replace(scene, objective=objective))
    if checkpoint is not None and isinstance(stream, Stateful):
        stream.load_state_tensors(checkpoint.under("stream/"))
    span = length_of(recipe)
    trainer = Trainer(
        wrap(_compiled(step, recipe), runtime),
        objective,
        stream,
        optimizers,
        schedule_of(recipe, state, rows_per_epoch=stream.rows_per_epoch),
        runtime,
        state,
        seed=recipe.train.seed,
        clip_norm=recipe.optim.clip_norm,
        max_bad_steps=recipe.train.max_bad_steps,
        budget=span.amount if span.unit == "seconds" else 0.0,
        cooldown=recipe.optim.cooldown,
        should_stop=should_stop,
    )
    return Parts(model, objective, trainer, scene)


def _model(
    recipe: Recipe,
    runtime: Runtime,
    checkpoint: Checkpoint | None,
    weights: dict[str, torch.Tensor] | None,
) -> Transformer:
    """The model of `build`, on its device."""
    model = Transformer(
        recipe.model, activation_checkpointing=recipe.train.activation_checkpointing
    )
    model.init_weights(recipe.train.seed)
    model.to(runtime.device, runtime.weight_dtype)  # before loading, which would round float64
    adapted = bool(recipe.lora.rank)
    begin = weights if adapted or checkpoint is None else checkpoint.model
    if begin is not None:
        load_weights(model, begin)
    elif adapted:
        check_lora(recipe)
        raise TypeError("an adapted model needs the weights that it adapts")
    if adapted:
        adapt(model, recipe.lora, recipe.train.seed)
        if checkpoint is not None:
            own = model.state_dict() | checkpoint.model
            _check_names(trained_tensors(model), checkpoint.model)
            model.load_state_dict(own)
    if recipe.stage == "reward" and not recipe.model.tie_embeddings:
        # A score is read off the hidden states: between ranks a gradient would be waited for.
        model.head.requires_grad_(False)
    return model


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Put saved weights into a model of the same shape.

    Raises:
        RunError: a name or a shape differs, each one named.
    """
    _check_names(model.state_dict(), weights)
    model.load_state_dict(weights)


def _check_names(own: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> None:
    faults = [f"{name} is missing" for name in own.keys() - weights.keys()]
    faults += [f"{name} is not part of this model" for name in weights.keys() - own.keys()]
    faults += [
        f"{name} is {tuple(weights[name].shape)} and must be {tuple(own[name].shape)}"
        for name in own.keys() & weights.keys()
        if own[name].shape != weights[name].shape
    ]
    if faults:
        raise RunError("weights of another shape: " + "; ".join(sorted(faults)[:5]))


def _optimizers(step: nn.Module, recipe: Recipe, runtime: Runtime) -> Optimizers:
    fast = runtime.autocast_dtype == torch.bfloat16
    dtype = torch.bfloat16 if fast else runtime.weight_dtype
    return build_optimizers(step, recipe.optim, muon_dtype=dtype)


def restore(optimizers: Optimizers, checkpoint: Checkpoint) -> None:
    """Optimizer buffers, which `trainer.safetensors` holds under `optimizer/`."""
    optimizers.load_state_tensors(checkpoint.under("optimizer/"))


def _compiled(step: nn.Module, recipe: Recipe) -> nn.Module:
    if recipe.train.compile == "on":
        step.compile(dynamic=False)
    return step


def _first_state(recipe: Recipe, runtime: Runtime) -> State:
    return State(
        micro_batch_size=recipe.train.micro_batch_size,
        loss_scale=LOSS_SCALE_START if runtime.precision == "float16" else 1.0,
        threads=torch.get_num_threads(),
        world_size=runtime.world_size,
    )


def total_steps(recipe: Recipe, rows_per_epoch: int) -> int:
    """How many steps `train.length` is; 0 for minutes, which only running can tell, and for
    epochs where `rows_per_epoch` is not known (0)."""
    span = length_of(recipe)
    match span.unit:
        case "steps":
            return math.ceil(span.amount)
        case "tokens":
            return math.ceil(span.amount / recipe.train.batch_tokens)
        case "epochs":
            rows = recipe.train.batch_tokens // recipe.train.seq_len
            return math.ceil(span.amount * rows_per_epoch / rows)
        case _:
            return 0


def schedule_of(recipe: Recipe, state: State, rows_per_epoch: int) -> Schedule:
    """The schedule of a run; one of minutes keeps what it has decided."""
    total = total_steps(recipe, rows_per_epoch)
    cooldown = round(recipe.optim.cooldown * total)
    if not total:
        total, cooldown = state.total_steps, state.cooldown_steps
    return Schedule(
        kind=recipe.optim.schedule,
        warmup_steps=recipe.optim.warmup_steps,
        total=total,
        cooldown_steps=cooldown,
        floor=recipe.optim.floor,
    )
