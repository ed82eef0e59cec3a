"""What a policy writes and what it earns, as batches.

Every `rollout.steps` updates lies a boundary: there the policy as it is answers the next prompts,
each with a group of completions, which are judged and packed into rows; the updates up to the next
boundary all go over these rows. A batch is a function of the step and of the weights at the last
boundary. What is pending between boundaries goes into the checkpoint.

Ranks share the prompts, then exchange ids and rewards as tensors, so each holds the whole rollout.
Log-probabilities come from the objective's own forward pass, over the very micro-batches of
training, so the first ratio is exactly 1 (up to rounding where memory runs out in between, and the
micro-batches shrink). Shapes: B rows, T positions, N completions, G of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparrowlm.batch import Batch
from sparrowlm.config import Recipe
from sparrowlm.config.rollout import check_rollout, opens_thought
from sparrowlm.data.packing import Item, best_fit, packed_batch, padded
from sparrowlm.data.prompts import Prompt, PromptDataset
from sparrowlm.data.streams import permute
from sparrowlm.errors import ConfigError, UserError
from sparrowlm.infer.answers import Answer, Dialect, write
from sparrowlm.infer.engine import Engine
from sparrowlm.infer.judging import Case, Judge
from sparrowlm.infer.placing import chosen_places, rank_share, scattered
from sparrowlm.infer.sampling import Sampling
from sparrowlm.infer.tools import Toolbox
from sparrowlm.model.transformer import Transformer
from sparrowlm.objectives.policy import Policy, gae, group_advantages
from sparrowlm.objectives.sequences import target_logprobs
from sparrowlm.runtime import Runtime, all_sum, derived_seed

SLOTS = 64  # sequences under way at once, at most
SHOWN = 3  # completions that a person is shown before the first update
Score = Callable[[Sequence[Sequence[int]]], list[float]]
"""What a reward model says of sequences of ids."""


class Written(NamedTuple):
    """A rollout as all ranks hold it. Tensors on the CPU; L is the longest sequence."""

    ids: Tensor
    """(N, L) int64, prompts and completions; 0 behind the end."""
    mask: Tensor
    """(N, L) bool, what the policy chose."""
    lengths: Tensor
    """(N,) int64."""
    rewards: Tensor
    """(N, R) float64 of each reward; 0 where it failed."""
    facts: Tensor
    """(N, 3) float64: ended by a limit, tool calls, rewards that failed."""


class RolloutStream:
    """See the module.

    Args:
        recipe: resolved.
        dataset: prompts.
        runtime: where, and which part of the prompts is this rank's.
        model: the policy; None where only rows are counted.
        objective: says the log-probabilities, and for ppo the values.
        reference: frozen, where `policy.kl_weight` holds the policy to it.
        score: of `rollout.reward_model`.

    Raises:
        ConfigError: settings that do not fit together, or a reward or tool that is not there.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: PromptDataset,
        runtime: Runtime,
        model: Transformer | None = None,
        objective: Policy | None = None,
        reference: Transformer | None = None,
        score: Score | None = None,
    ) -> None:
        check_rollout(recipe)
        self.recipe, self.dataset, self.runtime = recipe, dataset, runtime
        self.settings, self.seq_len = recipe.rollout, recipe.train.seq_len
        self.model, self.objective, self.reference = model, objective, reference
        self.score, self.micro_batch_size = score, recipe.train.micro_batch_size
        chat, thinking = self.settings.chat, opens_thought(self.settings)
        self.dialect = Dialect(dataset.tokenizer, chat, thinking)
        if self.settings.tools and not self.dialect.tells_results:
            raise ConfigError(
                "cannot be called in the turns of this vocabulary's chat template",
                where="rollout.tools",
                why="they are not ChatML's, in which a result is written",
                fix="leave it empty, or set rollout.chat = false",
            )
        self.judge = Judge(
            self.settings.rewards, self.settings.reward_timeout, self.settings.reward_workers
        )
        self.tools = Toolbox(self.settings.tools) if self.settings.tools else None
        self.names = [*self.settings.rewards, *(["reward_model"] if score else [])]
        weights = self.settings.weights or (1.0,) * len(self.settings.rewards)
        self.weights = torch.tensor([*weights, *([1.0] if score else [])], dtype=torch.float64)
        rollouts = -(-len(dataset.train) // self.settings.prompts)
        rows = recipe.train.batch_tokens // recipe.train.seq_len
        # An epoch answers every prompt once; lengths in epochs are counted in rows of batch_tokens.
        self.rows_per_epoch = rollouts * self.settings.steps * rows
        self.boundary, self.pending = -1, None
        self._metrics: dict[str, tuple[float, float]] = {}
        self._events: list[str] = []

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The rows of one rank in one step; at a boundary the policy answers first.

        Raises:
            UserError: a reward failed, and `rollout.on_fault` is "stop".
        """
        boundary = step // self.settings.steps
        if self.pending is None or self.boundary != boundary:
            self.pending = self._roll(boundary)
            self.boundary = boundary
        return self.pending.rows(*rank_share(len(self.pending.tokens), rank, world_size))

    def state_tensors(self) -> dict[str, Tensor]:
        """The rollout that is not used up."""
        if self.pending is None:
            return {}
        tensors = {f"columns/{name}": value for name, value in self.pending.columns.items()}
        for name in ("tokens", "targets", "mask", "segments"):
            tensors[name] = getattr(self.pending, name)
        return tensors | {"boundary": torch.tensor(self.boundary)}

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Go on with a saved rollout."""
        if not tensors:
            return
        columns = {
            name.removeprefix("columns/"): value
            for name, value in tensors.items()
            if name.startswith("columns/")
        }
        plain = {name: tensors[name] for name in ("tokens", "targets", "mask", "segments")}
        self.pending = padded(Batch(**plain, columns=columns), self.runtime.world_size)
        self.boundary = int(tensors["boundary"].item())

    def fit(self, rows: int) -> None:
        """Look at so many rows of a rollout at once, as training does."""
        self.micro_batch_size = rows

    def metrics(self) -> dict[str, tuple[float, float]]:
        """Of a new rollout: (sum, count) over all ranks; told once."""
        told, self._metrics = self._metrics, {}
        return told

    def events(self) -> list[str]:
        """What a person should hear of; told once."""
        told, self._events = self._events, []
        return told

    def close(self) -> None:
        """End the processes that judge and calculate."""
        self.judge.close()
        if self.tools is not None:
            self.tools.close()

    def measure(self) -> dict[str, float | None]:
        """The rewards of held-out prompts, answered greedily; empty where none is held out."""
        prompts = self.dataset.val
        count = min(self.settings.eval_prompts, len(prompts))
        if not count:
            return {}
        chosen = [prompts[index * len(prompts) // count] for index in range(count)]
        written = self._write(chosen, 1, seed=0, temperature=0.0)
        total = written.rewards @ self.weights
        means = {
            f"val_reward/{name}": one
            for name, one in zip(self.names, written.rewards.T, strict=True)
        }
        found = {"val_reward": total, **(means if len(self.names) > 1 else {})}
        found["val_length"] = written.mask.sum(1).double()
        found["val_truncated"] = written.facts[:, 0]
        return {name: value.mean().item() for name, value in found.items()}

    def _roll(self, boundary: int) -> Batch:
        """Answer, judge, pack, and look at it with the policy's own eyes."""
        settings = self.settings
        self._events.clear()  # of an attempt that memory did not suffice for
        prompts = [self.dataset.train[index] for index in self._chosen(boundary)]
        seed = derived_seed(self.recipe.train.seed, boundary * settings.steps)
        written = self._write(prompts, settings.group_size, seed, settings.temperature, boundary)
        rewards = written.rewards @ self.weights  # (N,)
        self._account(written, rewards)
        items = [
            Item(written.ids[n, :size].numpy(), written.mask[n, :size].numpy(), {})
            for n, size in enumerate(written.lengths.tolist())
        ]
        rows = best_fit([len(item.ids) - 1 for item in items], self.seq_len)
        batch = packed_batch([[(items[n],) for n in row] for row in rows], self.seq_len)
        batch = padded(batch, self.runtime.world_size)
        columns = self._looked_at(batch)
        places = chosen_places(items, rows, self.seq_len)  # (N, C)
        return batch._replace(columns=columns | self._advantages(rewards, places, columns))

    def _advantages(
        self, rewards: Tensor, places: Tensor, columns: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Columns (B, T) of advantages, and for ppo of returns, from rewards (N,)."""
        shape, dtype = columns["old_logprob"].shape, columns["old_logprob"].dtype
        real = places >= 0
        if "old_value" not in columns:
            groups = rewards.view(-1, self.settings.group_size)
            each = group_advantages(groups, self.recipe.policy.loss).flatten()  # (N,)
            return {"advantage": scattered(each[:, None].expand_as(places), places, shape, dtype)}
        policy = self.recipe.policy
        values = columns["old_value"].flatten()[places.clamp(min=0)].double() * real  # (N, C)
        last = real & (real.cumsum(1) == real.sum(1, keepdim=True))
        given = torch.where(last, rewards[:, None], 0.0)
        advantages, returns = gae(given, values, policy.discount, policy.gae_lambda)
        # Their scale is that of the rewards; the step's size should not be.
        mean, spread = advantages[real].mean(), advantages[real].std(correction=0)
        advantages = (advantages - mean) / (spread + 1e-8)
        return {
            "advantage": scattered(advantages, places, shape, dtype),
            "return": scattered(returns, places, shape, dtype),
        }

    def _chosen(self, boundary: int) -> list[int]:
        """Which prompts a rollout answers: all in a new order every epoch."""
        total, count = len(self.dataset.train), self.settings.prompts
        chosen = []
        for number in range(boundary * count, (boundary + 1) * count):
            epoch, place = divmod(number, total)
            seed = derived_seed(self.recipe.train.seed, epoch)
            chosen.append(int(permute(np.array([place]), total, seed)[0]))
        return chosen

    def _write(
        self,
        prompts: Sequence[Prompt],
        group: int,
        seed: int,
        temperature: float,
        boundary: int = -1,
    ) -> Written:
        """Let the ranks answer and judge their share of prompts, and gather what they have."""
        if self.model is None:
            raise TypeError("a rollout needs a model")
        rank, world = self.runtime.rank, self.runtime.world_size
        mine = [place for place in range(len(prompts)) if place % world == rank]
        answers: dict[int, Answer] = {}  # by completion
        for place in mine:
            for sample in range(group):
                sampling = Sampling(
                    temperature=temperature,
                    top_k=self.settings.top_k,
                    max_tokens=self.settings.max_tokens,
                    seed=derived_seed(seed, prompts[place].number, sample, place),
                )
                answers[place * group + sample] = Answer(prompts[place].ids, sampling)
        tokenizer = self.dataset.tokenizer
        slots = max(1, min(SLOTS, len(answers)))
        engine = Engine(self.model, tokenizer, self.runtime, slots=slots, slide=False)
        write(
            engine, self.dialect, list(answers.values()), self.seq_len + 1, self.tools,
            self.settings.max_calls,
        )  # fmt: skip
        return self._gathered(prompts, group, answers, boundary)

    def _gathered(
        self, prompts: Sequence[Prompt], group: int, answers: dict[int, Answer], boundary: int
    ) -> Written:
        """This rank's answers judged, and those of all ranks in tensors."""
        count = len(prompts) * group
        cases = [self._case(prompts[n // group], answer) for n, answer in answers.items()]
        verdicts = self.judge(cases)
        faults = [fault for verdict in verdicts for fault in verdict.faults]
        whole = {n: [*answer.prompt, *answer.ids] for n, answer in answers.items()}
        scores = self.score(list(whole.values())) if self.score else [None] * len(whole)
        lengths = torch.zeros(count, dtype=torch.int64)
        for n, ids in whole.items():
            lengths[n] = len(ids)
        lengths = self._shared(lengths)
        ids = torch.zeros(count, int(lengths.max()), dtype=torch.int64)
        mask, rewards = torch.zeros_like(ids), torch.zeros(count, len(self.names)).double()
        facts = torch.zeros(count, 3).double()
        for (n, answer), verdict, score in zip(answers.items(), verdicts, scores, strict=True):
            ids[n, : len(whole[n])] = torch.tensor(whole[n])
            mask[n, len(answer.prompt) : len(whole[n])] = torch.tensor(answer.mask).long()
            values = [*verdict.values, *([] if score is None else [score])]
            rewards[n] = torch.tensor(values, dtype=torch.float64)
            limited = float(answer.end in ("max_tokens", "context"))
            facts[n] = torch.tensor([limited, float(answer.calls), float(len(verdict.faults))])
        facts = self._shared(facts)
        self._complain(faults, int(facts[:, 2].sum()))
        if boundary == 0 and self.runtime.is_main:
            self._show(cases, rewards[sorted(answers)])
        shared = self._shared(ids), self._shared(mask).bool()
        return Written(*shared, lengths, self._shared(rewards), facts)

    def _case(self, prompt: Prompt, answer: Answer) -> Case:
        text, row = self.dialect.text(answer.ids[answer.turn :]), prompt.row
        if answer.calls:
            row = {**row, "transcript": self.dialect.text(answer.ids)}
        return Case(text, row, f"prompt {prompt.number}, {prompt.place}")

    def _complain(self, faults: list[str], everywhere: int) -> None:
        """Count failed rewards, or stop for them on all ranks together."""
        if not everywhere:
            return
        first = faults[0] if faults else "a reward failed on another rank"
        if self.settings.on_fault == "stop":
            raise UserError(
                first,
                where="rollout.rewards",
                why=f"{everywhere} calls of a rollout failed" if everywhere > 1 else "",
                fix='mend the reward and go on with --resume, or set rollout.on_fault = "zero"',
            )
        self._events.append(f"{everywhere} failed rewards count 0, first: {first}")

    def _show(self, cases: list[Case], rewards: Tensor) -> None:
        """A few completions and what they earn, for a person to see that the rewards mean what
        they should."""
        apart = max(1, len(cases) // SHOWN)
        for case, values in list(zip(cases, rewards.tolist(), strict=True))[::apart][:SHOWN]:
            earned = ", ".join(f"{n} {v:g}" for n, v in zip(self.names, values, strict=True))
            self._events.append(f"{case.place}: {case.completion!r} earns {earned}")

    def _account(self, written: Written, rewards: Tensor) -> None:
        count, groups = len(rewards), rewards.view(-1, self.settings.group_size)
        equal = (groups == groups[:, :1]).all(1).sum().item()
        self._metrics = {
            "reward": (rewards.sum().item(), count),
            "zero_variance": (equal, len(groups)),
            "truncated": (written.facts[:, 0].sum().item(), count),
        }
        if len(self.names) > 1:
            for name, values in zip(self.names, written.rewards.T, strict=True):
                self._metrics[f"reward/{name}"] = (values.sum().item(), count)
        if self.tools is not None:
            self._metrics["tool_calls"] = (written.facts[:, 1].sum().item(), count)
        if failed := written.facts[:, 2].sum().item():
            self._metrics["failed_rewards"] = (failed, count)

    @torch.no_grad()
    def _looked_at(self, batch: Batch) -> dict[str, Tensor]:
        """Columns (B, T) of log-probabilities and values: every rank looks at the rows that it
        will train on, in the same micro-batches."""
        model, objective = self.model, self.objective
        if model is None or objective is None:
            raise TypeError("a rollout needs a model and its objective")
        rows, size = len(batch.tokens), self.micro_batch_size
        first, last = rank_share(rows, self.runtime.rank, self.runtime.world_size)
        found: dict[str, Tensor] = {}
        for start in range(first, last, size):
            stop = min(start + size, last)
            micro = batch.rows(start, stop).to(self.runtime.device)
            with self.runtime.autocast():
                logprob, value = objective.judged(model, micro)
                told: dict[str, Tensor | None] = {"old_logprob": logprob, "old_value": value}
                if self.reference is not None:
                    hidden = self.reference(micro.tokens, micro.segments).hidden
                    told["reference_logprob"] = target_logprobs(self.reference, hidden, micro)
            for name, values in told.items():
                if values is not None:
                    column = found.setdefault(name, values.new_zeros(batch.tokens.shape).cpu())
                    column[start:stop] = values.cpu()
        return {name: self._shared(found[name]) for name in sorted(found)}

    def _shared(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, each of which has filled in its own part."""
        if self.runtime.world_size == 1:
            return tensor
        return all_sum(tensor.to(self.runtime.device)).cpu()
