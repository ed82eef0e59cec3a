"""One sitting of a run: what happens between two steps of the loop.

The trainer yields rows; here they are logged, and when their time has come the held-out split is
measured, samples are written and a checkpoint is saved. Every decision is a function of the row,
which is the same on all ranks, so all ranks take it together; only rank 0 writes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from sparrowlm.checkpoint import Checkpoint, RunFolder, State
from sparrowlm.config import Recipe
from sparrowlm.config.units import parse_span
from sparrowlm.data.mixed import MixedStream
from sparrowlm.data.mixture import Mixture
from sparrowlm.data.sequences import AnyDataset
from sparrowlm.errors import UserError
from sparrowlm.infer.rollouts import RolloutStream
from sparrowlm.model.lora import trained_tensors
from sparrowlm.runtime import Runtime, derived_seed, peak_memory_bytes
from sparrowlm.train.build import Parts
from sparrowlm.train.measure import Means, finite, mean, measure, stride_of
from sparrowlm.train.samples import Write
from sparrowlm.train.trainer import Row, Stateful, Trainer


class Display(Protocol):
    """Who shows a run to a person while it goes on."""

    def start(self, plan: list[str], *, total_steps: int, seconds: float) -> None:
        """Before the first step: what was planned, and how long it is in steps or seconds."""

    def step(self, row: dict[str, Any]) -> None:
        """After each step: its row of metrics.jsonl."""

    def evaluation(self, row: dict[str, Any]) -> None:
        """After the held-out split was measured."""

    def sample(self, prompt: str, text: str) -> None:
        """What the model wrote."""

    def event(self, message: str) -> None:
        """What a person should hear of."""

    def finish(self, summary: dict[str, Any]) -> None:
        """After the last step."""


@dataclass(frozen=True)
class Cadence:
    """`"250 steps"` or `"20 seconds"`, as a question to two rows."""

    amount: float
    unit: str

    @classmethod
    def of(cls, text: str, key: str) -> Cadence:
        """Read a setting; the empty string is never."""
        if not text:
            return cls(math.inf, "steps")
        span = parse_span(text, key=key, units=("steps", "seconds"))
        return cls(span.amount, span.unit)

    def due(self, before: tuple[int, float], after: tuple[int, float]) -> bool:
        """Whether a multiple of the amount lies between two (step, seconds)."""
        index = 0 if self.unit == "steps" else 1
        if math.isinf(self.amount):
            return False
        return before[index] // self.amount < after[index] // self.amount


class Cadences(NamedTuple):
    """How often a run is measured, writes samples and is saved."""

    measure: Cadence
    sample: Cadence
    save: Cadence

    @classmethod
    def of(cls, recipe: Recipe) -> Cadences:
        """Read the settings.

        Raises:
            ConfigError: one is no number of steps or seconds.
        """
        return cls(
            Cadence.of(recipe.eval.every, "eval.every"),
            Cadence.of(recipe.samples.every, "samples.every"),
            Cadence.of(recipe.checkpoint.every, "checkpoint.every"),
        )


class Sitting:
    """Consumes the trainer's rows.

    Args:
        parts: the model, its objective, and the trainer.
        recipe: resolved.
        run: where results go.
        dataset: for the held-out split and the tokenizer.
        runtime: device and rank.
        display: shows things; called on rank 0 only.
        write: of `samples.writer`; None: no samples.
        flops_per_token: of a training step, for utilization.
        ceiling: FLOP/s that this machine multiplies matrices at; 0 where not measured.
    """

    def __init__(
        self,
        parts: Parts,
        recipe: Recipe,
        run: RunFolder,
        dataset: AnyDataset,
        runtime: Runtime,
        display: Display,
        write: Write | None,
        *,
        flops_per_token: float,
        ceiling: float,
    ) -> None:
        self.parts, self.recipe, self.run_folder = parts, recipe, run
        self.dataset, self.runtime, self.display = dataset, runtime, display
        self.write, self.cadences = write, Cadences.of(recipe)
        self.flops_per_token, self.ceiling = flops_per_token, ceiling

    @property
    def trainer(self) -> Trainer:
        """The loop whose rows are consumed."""
        return self.parts.trainer

    def run(self) -> bool:
        """Train to the end, or until asked to stop.

        Returns:
            True at the end, False where it was asked to stop; both ways everything is saved.
        """
        try:
            self._begin()
            return self._steps()
        except UserError:
            # Raised between two updates: what is done so far is not lost.
            state = self.trainer.state
            if state.step and state.step not in self.run_folder.steps():
                self._save()
            raise
        finally:
            if isinstance(self.trainer.stream, RolloutStream):
                self.trainer.stream.close()

    def _begin(self) -> None:
        """What is measured before the first step, and what a stream has to say."""
        stream, state = self.trainer.stream, self.trainer.state
        # What a run starts from: an improvement is one only beside it.
        later = self.recipe.init.from_ and self.recipe.stage != "pretrain"
        found = later and not state.step and self._found()
        if found:
            self._tell_measured("eval", found, state)
        if isinstance(stream, RolloutStream) and state.step != self.trainer.schedule.total:
            self.trainer.batch()
            for message in stream.events():
                self.event(message)

    def _steps(self) -> bool:
        """The steps of `run`."""
        before = (self.trainer.state.step, self.trainer.state.seconds)
        for row in self.trainer.run():
            after = (row.step, row.seconds)
            self._log(row)
            last = row.step == self.trainer.schedule.total
            measured = last or self.cadences.measure.due(before, after)
            improved = self._measure(row) if measured else False
            if last and self.recipe.eval.windows and self.recipe.eval.whole_at_end:
                self._measure_whole(row)
            if last or self.cadences.sample.due(before, after):
                self._sample(row)
            if last or improved or row.stopping or self.cadences.save.due(before, after):
                self._save()
            if row.stopping and not last:
                return False
            before = after
        return True

    def _log(self, row: Row) -> None:
        """One line of metrics.jsonl, and the display's."""
        if not self.runtime.is_main:
            return
        for message in row.events:
            self.event(message, row)
        values = self._values(row)
        self.run_folder.append("metrics.jsonl", values)
        self.display.step(values)

    def _values(self, row: Row) -> dict[str, Any]:
        tokens_per_second = row.step_tokens / row.step_seconds
        flops = tokens_per_second * self.flops_per_token / self.runtime.world_size
        means = {name: mean(*pair) for name, pair in row.metrics.items()}
        return {
            "kind": "train",
            "step": row.step,
            "bits_per_byte": None,
            **means,
            "lr": self.recipe.optim.lr * row.lr_scale,
            "grad_norm": finite(row.grad_norm),
            "tokens": row.tokens,
            **self._by_source(row.step),
            "seconds": round(row.seconds, 3),
            "tokens_per_second": round(tokens_per_second, 1),
            "mfu": round(flops / self.ceiling, 4) if self.ceiling else None,
            "memory_bytes": peak_memory_bytes(self.runtime.device),
            "skipped": self.trainer.state.skipped,
        }

    def _by_source(self, step: int) -> dict[str, int]:
        """The tokens of each source of a mixture up to a step, which its stream knows."""
        stream = self.trainer.stream
        if not isinstance(self.dataset, Mixture) or not isinstance(stream, MixedStream):
            return {}
        counts = zip(self.dataset.parts, stream.tokens(step), strict=True)
        return {f"tokens/{part.name}": count for part, count in counts}

    def event(self, message: str, row: Row | None = None) -> None:
        """Tell the log and the person."""
        if not self.runtime.is_main:
            return
        state = self.trainer.state
        step, seconds = (row.step, row.seconds) if row else (state.step, state.seconds)
        told = {"kind": "event", "step": step, "seconds": round(seconds, 3), "message": message}
        self.run_folder.append("metrics.jsonl", told)
        self.display.event(message)

    def _measure(self, row: Row) -> bool:
        """Measure the held-out split on all ranks together.

        Returns:
            Whether it is the best so far.
        """
        found = self._found()
        if not found:
            return False
        state = self.trainer.state
        loss, reward = found.get("val_loss"), found.get("val_reward")
        if "val_reward" in found:
            before = -math.inf if state.best_val_reward is None else state.best_val_reward
            improved = reward is not None and reward > before
            better = replace(state, best_val_reward=reward, best_step=row.step)
        else:
            before = math.inf if state.best_val_loss is None else state.best_val_loss
            improved = loss is not None and loss < before
            better = replace(state, best_val_loss=loss, best_step=row.step)
        if improved:
            self.trainer.state = better
        self._tell_measured("eval", found, row)
        return improved

    def _found(self) -> Means:
        """What the held-out split says now."""
        return measure(self.parts, self.recipe, self.dataset, self.runtime)

    def _measure_whole(self, row: Row) -> None:
        """Measure all of the held-out split, not windows of it: what the summary then says."""
        recipe = replace(self.recipe, eval=replace(self.recipe.eval, windows=0))
        stride = stride_of(recipe)
        found = measure(self.parts, recipe, self.dataset, self.runtime, stride)
        if "val_loss" in found:
            self._tell_measured("eval_whole", found | ({"stride": stride} if stride else {}), row)

    def _tell_measured(self, kind: str, found: Means, row: Row | State) -> None:
        """One line of metrics.jsonl, and the display's, of where `row` stands."""
        if not self.runtime.is_main:
            return
        values = {
            "kind": kind,
            "step": row.step,
            "val_loss": None,
            "val_bits_per_byte": None,
            **found,
            "tokens": row.tokens,
            "seconds": round(row.seconds, 3),
        }
        self.run_folder.append("metrics.jsonl", values)
        self.display.evaluation(values)

    def _sample(self, row: Row) -> None:
        """Let the model write from each prompt."""
        if self.write is None or not self.runtime.is_main:
            return
        for number, prompt in enumerate(self.recipe.samples.prompts):
            text = self.write(prompt, derived_seed(self.recipe.train.seed, row.step, number))
            values = {"step": row.step, "prompt": prompt, "text": text}
            values["seconds"] = round(row.seconds, 3)
            self.run_folder.append("samples.jsonl", values)
            self.display.sample(prompt, text)

    def _save(self) -> None:
        """Write a checkpoint of where the trainer stands."""
        if not self.runtime.is_main:
            return
        sizes = self.run_folder.log_bytes()
        fingerprint = self.dataset.tokenizer.fingerprint if self.dataset.tokenizer else ""
        self.trainer.state = replace(
            self.trainer.state,
            log_bytes=sizes,
            data_fingerprint=self.dataset.fingerprint,
            tokenizer_fingerprint=fingerprint,
        )
        self.run_folder.save(snapshot(self.parts), self.recipe.checkpoint.keep_last)


def snapshot(parts: Parts) -> Checkpoint:
    """All that a step leaves behind: weights (of an adapted model its adapters), the objective's
    own, optimizer buffers, state."""
    optimizer = parts.trainer.optimizers.state_tensors()
    objective, stream = parts.objective.state_dict(), parts.trainer.stream
    pending = stream.state_tensors() if isinstance(stream, Stateful) else {}
    return Checkpoint(
        state=parts.trainer.state,
        model=trained_tensors(parts.model),
        trainer={f"optimizer/{name}": tensor for name, tensor in optimizer.items()}
        | {f"objective/{name}": tensor for name, tensor in objective.items()}
        | {f"stream/{name}": tensor for name, tensor in pending.items()},
    )
