"""The one loop: batches from a stream, a loss from an objective.

It does not know which stage it runs, and it reads and writes no file: it yields a row for every
step, and whoever consumes the rows logs, measures, samples and saves between two of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sparrowlm.batch import Batch, Loss, Metrics, Objective
from sparrowlm.checkpoint import State
from sparrowlm.errors import EnvironmentFault
from sparrowlm.optim import Optimizers, Schedule
from sparrowlm.runtime import Runtime, all_sum, derived_seed

Made = TypeVar("Made")


class Stream(Protocol):
    """Where batches come from: a function of the step and of which part of the world asks."""

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The rows of `rank` in the batch of `step`."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """A stream that depends on more than the step: a rollout that is not used up yet."""

    def state_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint has to carry."""
        ...

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what a checkpoint carried."""
        ...


@runtime_checkable
class Fitting(Protocol):
    """A stream that asks the model itself, of as many rows at once as a micro-batch has."""

    def fit(self, rows: int) -> None:
        """Ask of so many rows at once from now on."""
        ...


@runtime_checkable
class Telling(Protocol):
    """A stream that has something to say of what it gives; what was said is not repeated."""

    def metrics(self) -> dict[str, tuple[float, float]]:
        """For the log: (sum, count) over all ranks."""
        ...

    def events(self) -> list[str]:
        """For a person."""
        ...


class Step(nn.Module):
    """Model and objective as one module with one call, for DDP and torch.compile to wrap."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: Batch) -> Loss:
        """The objective's loss on the model."""
        return self.objective(self.model, batch)


@dataclass(frozen=True)
class Row:
    """What happened in one step."""

    step: int  # Steps done, this one included
    metrics: dict[str, tuple[float, float]]  # (sum, count) over the whole step
    lr_scale: float
    grad_norm: float
    tokens: int  # Gone through so far
    seconds: float  # Since the run began, the same on all ranks
    step_seconds: float
    step_tokens: int  # Gone through in this step, over all ranks
    stopping: bool = False  # A rank was asked to stop: save, and leave the loop
    events: tuple[str, ...] = ()  # What a person should hear of

    @property
    def applied(self) -> bool:
        """Whether the weights moved."""
        return math.isfinite(self.grad_norm)


class Trainer:
    """Runs steps until the schedule ends.

    Args:
        step: model and objective, already on the device; compiled and wrapped by DDP or not.
        objective: the same objective, for counting.
        stream: yields the batches.
        optimizers: over the parameters of `step`.
        schedule: of the learning rate; one with `total` 0 runs until `budget` decides.
        runtime: device, precision, rank.
        state: where the run stands; replaced after each step.
        seed: of dropout.
        clip_norm: largest gradient norm, or 0.
        max_bad_steps: non-finite steps in a row that end the run.
        budget: seconds of the whole run, for a schedule without a total.
        cooldown: share of the budget that cools down.
        should_stop: asked after every step; where any rank says yes, all rows from then on say
            `stopping`.
    """

    def __init__(
        self,
        step: nn.Module,
        objective: Objective,
        stream: Stream,
        optimizers: Optimizers,
        schedule: Schedule,
        runtime: Runtime,
        state: State,
        *,
        seed: int,
        clip_norm: float,
        max_bad_steps: int,
        budget: float = 0.0,
        cooldown: float = 0.0,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.step_module, self.objective, self.stream = step, objective, stream
        self.optimizers, self.schedule, self.runtime = optimizers, schedule, runtime
        self.state, self.seed = state, seed
        self.clip_norm, self.max_bad_steps = clip_norm, max_bad_steps
        self.budget, self.cooldown = budget, cooldown
        self.should_stop = should_stop
        self.stopping = False
        self.events: list[str] = []
        self.began = time.perf_counter() - state.seconds
        self.first_step_ended: tuple[int, float] | None = None
        self._fit_stream()

    def batch(self) -> Batch:
        """This rank's rows of the step to come; a rollout is made here, with smaller micro-batches
        where memory runs out."""
        rank, world = self.runtime.rank, self.runtime.world_size
        return self._fitting(lambda: self.stream.batch(self.state.step, rank, world))

    def run(self) -> Iterator[Row]:
        """Train, a row at a time, to the end of the schedule."""
        while not self.schedule.total or self.state.step < self.schedule.total:
            began = time.perf_counter()
            scale = self.schedule.scale(self.state.step)
            self.optimizers.set_scale(scale)
            metrics, tokens, grad_norm = self._fitting(self._one_step)
            if isinstance(self.stream, Telling):
                metrics |= self.stream.metrics()
                self.events += self.stream.events()
            self._account(tokens, grad_norm)
            self._decide_length()
            yield Row(
                step=self.state.step,
                metrics=metrics,
                lr_scale=scale,
                grad_norm=grad_norm,
                tokens=self.state.tokens,
                seconds=self.state.seconds,
                step_seconds=time.perf_counter() - began,
                step_tokens=tokens,
                stopping=self.stopping,
                events=self._told(),
            )

    def _fitting(self, attempt: Callable[[], Made]) -> Made:
        """A step or its batch, with smaller micro-batches where memory runs out.

        Nothing of a failed attempt remains, and a batch is a function of its step, so the second
        attempt is the same step.
        """
        while True:
            try:
                return attempt()
            except (torch.OutOfMemoryError, RuntimeError) as fault:
                if not is_out_of_memory(fault):
                    raise
                self.optimizers.zero_grad()
                self._halve(fault)
            torch.cuda.empty_cache()  # does nothing without CUDA

    def _one_step(self) -> tuple[dict[str, tuple[float, float]], int, float]:
        """Accumulate micro-batches, divide once, clip, update.

        Returns:
            The reduced metrics, the tokens of all ranks, and the gradient norm (NaN or infinite
            where the step was not applied).
        """
        rank, world = self.runtime.rank, self.runtime.world_size
        batch = self.batch()
        counts = torch.stack([self.objective.count(batch), torch.tensor(batch.tokens.numel())])
        count, tokens = all_sum(counts.to(self.runtime.device)).tolist()
        # DDP averages over ranks; a sum over them is wanted.
        factor = world * self.state.loss_scale / max(count, 1)
        metrics, size = Metrics(), self.state.micro_batch_size
        starts = range(0, batch.tokens.size(0), size)
        for number, start in enumerate(starts):
            micro = batch.rows(start, start + size).to(self.runtime.device)
            torch.manual_seed(derived_seed(self.seed, self.state.step, number, rank))
            with self._synchronized(last=number == len(starts) - 1):
                with self.runtime.autocast():
                    loss: Loss = self.step_module(micro)
                (loss.total * factor).backward()
            metrics.add(loss.metrics)
        reduced = metrics.reduce()
        grad_norm = self._clip()
        if not all(math.isfinite(total) for total, _ in reduced.values()):
            grad_norm = math.nan
        if math.isfinite(grad_norm):
            self.optimizers.step()
        self.optimizers.zero_grad()
        return reduced, int(tokens), grad_norm

    def _synchronized(self, *, last: bool) -> AbstractContextManager[Any]:
        """Gradients cross ranks once a step, in the backward pass of the last micro-step."""
        if isinstance(self.step_module, DistributedDataParallel) and not last:
            return self.step_module.no_sync()
        return nullcontext()

    def _clip(self) -> float:
        """Undo the loss scale, clip, and return the norm before clipping."""
        grads = [p.grad for p in self.optimizers.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads) / self.state.loss_scale
        value = norm.item()
        if math.isfinite(value):
            limit = self.clip_norm or math.inf
            shrink = min(1.0, limit / (value + 1e-6)) / self.state.loss_scale
            if shrink != 1.0:
                torch._foreach_mul_(grads, shrink)
        return value

    def _account(self, tokens: int, grad_norm: float) -> None:
        """Move the state past this step.

        Raises:
            EnvironmentFault: too many steps in a row were not finite.
        """
        state = self.state
        bad = not math.isfinite(grad_norm)
        scale, age = _next_loss_scale(state, bad) if self.scales_loss else (state.loss_scale, 0)
        self.state = replace(
            state,
            step=state.step + 1,
            tokens=state.tokens + tokens,
            seconds=self._shared_clock(),
            skipped=state.skipped + bad,
            # A loss scale that is being lowered is float16 finding its range, not a divergence.
            skipped_in_a_row=(state.skipped_in_a_row + (scale == state.loss_scale)) * bad,
            loss_scale=scale,
            loss_scale_age=age,
        )
        if bad and scale == state.loss_scale:
            self._tell(
                f"step {self.state.step} was not applied: its loss or gradient is not finite"
            )
        if self.state.skipped_in_a_row >= self.max_bad_steps:
            raise EnvironmentFault(
                f"{self.state.skipped_in_a_row} steps in a row gave a loss or gradient that is not"
                f" finite, up to step {self.state.step}",
                where="training",
                why="the weights have diverged; the last checkpoint before that is kept",
                fix="lower optim.lr (and optim.muon_lr), or set train.precision to float32",
            )

    @property
    def scales_loss(self) -> bool:
        """Gradients in float16 underflow unless the loss is scaled up."""
        return self.runtime.precision == "float16"

    def _shared_clock(self) -> float:
        """Seconds since the run began, by rank 0's clock, and whether any rank wants to stop, so
        that all ranks decide alike."""
        seconds, stop = time.perf_counter() - self.began, self.should_stop()
        if self.runtime.world_size > 1:
            own = [seconds if self.runtime.is_main else 0.0, float(stop)]
            shared = all_sum(torch.tensor(own, dtype=torch.float64, device=self.runtime.device))
            seconds, stop = shared[0].item(), bool(shared[1].item())
        self.stopping = bool(stop)
        return seconds

    def _decide_length(self) -> None:
        """In a run of minutes: once the cooldown's share is all that is left, fix the length.

        Speed is measured from the end of the first step on, which compiles and warms caches, and
        includes what consumers do between steps.
        """
        if self.schedule.total:
            return
        step, seconds = self.state.step, self.state.seconds
        if self.first_step_ended is None:
            self.first_step_ended = (step, seconds)
        if seconds < self.budget * (1 - self.cooldown) and seconds < self.budget:
            return
        first, first_seconds = self.first_step_ended
        pace = (seconds - first_seconds) / (step - first) if step > first else seconds / step
        cooldown = max(1, round((self.budget - seconds) / pace))
        self.schedule = replace(self.schedule, total=step + cooldown, cooldown_steps=cooldown)
        self.state = replace(self.state, total_steps=step + cooldown, cooldown_steps=cooldown)
        self._tell(f"cooling down from step {step} to step {step + cooldown}, the last")

    def _halve(self, fault: BaseException) -> None:
        """Go on with micro-batches of half the size.

        Raises:
            EnvironmentFault: they hold one row already, or other ranks wait for this one.
        """
        size = self.state.micro_batch_size
        if size <= 1 or self.runtime.world_size > 1:
            raise EnvironmentFault(
                f"out of memory at train.micro_batch_size {size}",
                where=str(self.runtime.device),
                fix="set train.activation_checkpointing = true, or a shorter model.max_seq_len"
                if size <= 1
                else f"set train.micro_batch_size = {max(1, size // 2)}",
            ) from fault
        self.state = replace(self.state, micro_batch_size=size // 2)
        self._fit_stream()
        self._tell(f"out of memory: micro_batch_size is now {size // 2}; batch_tokens stays")

    def _fit_stream(self) -> None:
        if isinstance(self.stream, Fitting):
            self.stream.fit(self.state.micro_batch_size)

    def _tell(self, message: str) -> None:
        self.events.append(message)

    def _told(self) -> tuple[str, ...]:
        told = tuple(self.events)
        self.events.clear()
        return told


def is_out_of_memory(fault: BaseException) -> bool:
    """CUDA has an exception of its own; MPS and the CPU's allocator, whose words differ between
    systems, raise a plain RuntimeError."""
    plain = ("DefaultCPUAllocator: ", "MPS backend out of memory")
    told = str(fault)
    return isinstance(fault, torch.OutOfMemoryError) or any(words in told for words in plain)


LOSS_SCALE_START, LOSS_SCALE_PATIENCE = 2.0**16, 2000


def _next_loss_scale(state: State, bad: bool) -> tuple[float, int]:
    """Halve after an overflow, double after 2,000 steps without (Micikevicius et al. 2018)."""
    if bad:
        return max(state.loss_scale / 2, 1.0), 0
    if state.loss_scale_age + 1 >= LOSS_SCALE_PATIENCE:
        return state.loss_scale * 2, 0
    return state.loss_scale, state.loss_scale_age + 1
