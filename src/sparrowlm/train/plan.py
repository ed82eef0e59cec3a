"""What a recipe will need, before anything starts."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sparrowlm.checkpoint import find_run
from sparrowlm.config import ModelConfig, Recipe
from sparrowlm.config.units import show_bytes, show_count, show_duration
from sparrowlm.errors import RunError
from sparrowlm.model.count import (
    Memory,
    Parameters,
    count_parameters,
    flops_per_token,
    lora_parameters,
    training_memory,
)
from sparrowlm.model.head import CHUNK_BYTES
from sparrowlm.runtime import Runtime, device_memory

USABLE = 0.85  # of what is free: the allocator and the libraries want the rest
ATTAINED = 0.5  # of the matrix-product ceiling: what a training step can be expected to reach
CPU_TOKENS = 8192  # of a micro-batch on a CPU: more only leaves the caches


@dataclass(frozen=True)
class Plan:
    """The needs of a run in numbers."""

    recipe: Recipe  # Resolved
    parameters: Parameters  # Of the model, adapters apart
    trained: int  # How many numbers get gradients
    memory: Memory  # At the recipe's micro-batch
    available: int  # Bytes that may be used; 0 where unknown
    total_steps: int  # 0: a length in time, or one that only the data can tell
    flops_per_token: float
    rate: float  # FLOP/s that the device multiplies matrices at
    world_size: int

    @property
    def tokens(self) -> int:
        """That the run goes through; 0 where its length is a time."""
        return self.total_steps * self.recipe.train.batch_tokens

    @property
    def seconds(self) -> float:
        """How long that takes at half of the ceiling."""
        return self.tokens * self.flops_per_token / (self.rate * ATTAINED * self.world_size)

    @property
    def checkpoint_bytes(self) -> int:
        """Size of one checkpoint on the disk."""
        weights = self.memory.gradients if self.recipe.lora.rank else self.memory.weights
        return weights + self.memory.optimizer

    @property
    def fits(self) -> bool:
        """Whether the memory suffices."""
        return not self.available or self.memory.total <= self.available

    def short(self) -> list[str]:
        """Two lines that every run prints."""
        train = self.recipe.train
        rows = train.batch_tokens // train.seq_len
        lora = self.recipe.lora
        own = f" and {show_count(self.trained)} beside them to train (rank {lora.rank})"
        optimizer = "adamw" if lora.rank else self.recipe.optim.name
        told = (
            f"{show_count(self.parameters.total)} parameters{own if lora.rank else ''},"
            f" {optimizer},"
            f" {train.precision}{', compiled' if train.compile == 'on' else ''};"
            f" steps of {rows} x {train.seq_len} tokens, {train.micro_batch_size} rows at a time"
        )
        need = f"needs about {show_bytes(self.memory.total)}"
        need += f" of {show_bytes(self.available)}" if self.available else ""
        if not self.tokens:
            return [told, f"{need}; length {train.length}"]
        length = f"{self.total_steps} steps, {show_count(self.tokens)} tokens"
        return [told, f"{need}; {length}, about {show_duration(self.seconds)}"]


def plan_of(
    recipe: Recipe, runtime: Runtime, rate: float, *, total_steps: int, available: int = 0
) -> Plan:
    """Work out the needs of a resolved recipe.

    Args:
        recipe: from `resolve_recipe`.
        runtime: where it is to run.
        rate: FLOP/s of matrix products there.
        total_steps: of the run; 0 where its length is a time.
        available: bytes that may be used; 0 takes what the device has free.
    """
    return Plan(
        recipe=recipe,
        parameters=count_parameters(recipe.model),
        trained=lora_parameters(recipe.model, recipe.lora) or count_parameters(recipe.model).total,
        memory=step_memory(recipe, runtime, recipe.train.micro_batch_size),
        available=available or int(USABLE * device_memory(runtime.device)[1]),
        total_steps=total_steps,
        flops_per_token=flops_per_token(recipe.model, recipe.train.seq_len, recipe.lora),
        rate=rate,
        world_size=runtime.world_size,
    )


def step_memory(recipe: Recipe, runtime: Runtime, rows: int) -> Memory:
    """Bytes of a step with micro-batches of `rows`."""
    trained = training_memory(
        recipe.model,
        rows,
        recipe.train.seq_len,
        optimizer=recipe.optim.name,
        weight_bytes=runtime.weight_dtype.itemsize,
        product_bytes=_product_bytes(runtime),
        checkpointing=recipe.train.activation_checkpointing,
        device=runtime.device.type,
        lora=recipe.lora,
    )
    return trained._replace(frozen=frozen_memory(recipe, runtime, rows))


def _product_bytes(runtime: Runtime) -> int:
    return (runtime.autocast_dtype or runtime.weight_dtype).itemsize


def frozen_memory(recipe: Recipe, runtime: Runtime, rows: int) -> int:
    """Bytes of the models that a step asks: their weights, and of a teacher, whose say is part of
    the loss, the hidden states and a chunk of logits and odds. A reference and a judge are asked
    between steps, when nothing waits for a backward pass."""
    shapes = frozen_shapes(recipe)
    held = sum(count_parameters(shape).total for shape in shapes) * runtime.weight_dtype.itemsize
    if recipe.stage != "distill":
        return held
    tokens, teacher = rows * recipe.train.seq_len, shapes[0]
    said = _product_bytes(runtime) * tokens * teacher.d_model
    return held + said + 2 * min(CHUNK_BYTES, 4 * tokens * teacher.vocab_size)


def frozen_shapes(recipe: Recipe) -> list[ModelConfig]:
    """The models that stay in memory beside the one that is trained. The reference of stage dpo
    is none of them: it has said all before the first step. A run that is not there yet, such as
    that of an earlier stage, is taken to have the recipe's own shape."""
    if recipe.stage == "distill":
        return [_shape_of(recipe.distill.teacher, recipe.model)]
    if recipe.stage not in ("grpo", "ppo"):
        return []
    reference = [recipe.model] if recipe.policy.kl_weight else []  # what the policy starts from
    judge = recipe.rollout.reward_model
    return reference + ([_shape_of(judge, recipe.model)] if judge else [])


def _shape_of(name: str, otherwise: ModelConfig) -> ModelConfig:
    try:
        return find_run(Path(name))[0].recipe().model if name else otherwise
    except RunError:
        return otherwise  # training is where a run that is missing ends it


def fitting_rows(recipe: Recipe, runtime: Runtime, available: int | None = None) -> int:
    """The largest micro-batch that fits: the rank's rows, halved until they do; at least 1.

    Args:
        recipe: with its model and row length resolved.
        runtime: where it is to run.
        available: bytes that may be used; None takes what the device has free.
    """
    if available is None:
        available = int(USABLE * device_memory(runtime.device)[1]) or sys.maxsize  # 0: unknown
    rows = max(1, recipe.train.batch_tokens // recipe.train.seq_len // runtime.world_size)
    if runtime.device.type == "cpu":
        rows = min(rows, max(1, CPU_TOKENS // recipe.train.seq_len))
    while rows > 1 and step_memory(recipe, runtime, rows).total > available:
        rows = (rows + 1) // 2
    return rows


@dataclass(frozen=True)
class Fit:
    """Settings under which a card holds a run."""

    precision: str
    checkpointing: bool
    rows: int  # Of a micro-batch
    memory: Memory


def settings_that_fit(recipe: Recipe, card: int) -> Fit | None:
    """The fastest settings that fit a CUDA card, or None: half precision, then that with activation
    checkpointing, then float32 with it, which is slowest but needs no narrow copies of the weights.

    Args:
        recipe: resolved; its own precision and checkpointing do not count.
        card: bytes of its memory, of which `USABLE` may be used.
    """
    # float16 holds as much as bfloat16, which cards before compute capability 8.0 do not have.
    for precision, spared in (("bfloat16", False), ("bfloat16", True), ("float32", True)):
        runtime = Runtime(torch.device("cuda"), precision)
        tried = replace(recipe, train=replace(recipe.train, activation_checkpointing=spared))
        rows = fitting_rows(tried, runtime, int(USABLE * card))
        memory = step_memory(tried, runtime, rows)
        if memory.total <= USABLE * card:
            return Fit(precision, spared, rows, memory)
    return None


def advice(plan: Plan, runtime: Runtime) -> str:
    """The setting that would make a run fit."""
    recipe = plan.recipe
    rows = fitting_rows(recipe, runtime, plan.available)
    if step_memory(recipe, runtime, rows).total <= plan.available:
        return f"train.micro_batch_size = {rows} fits"
    spared = replace(recipe, train=replace(recipe.train, activation_checkpointing=True))
    rows = fitting_rows(spared, runtime, plan.available)
    if step_memory(spared, runtime, rows).total <= plan.available:
        return f"train.activation_checkpointing = true with train.micro_batch_size = {rows} fits"
    return "no micro-batch fits: make model.d_model or model.n_layers smaller"
