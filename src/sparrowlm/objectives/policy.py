"""Make what earned a reward likelier: grpo, dr_grpo, cispo and ppo.

A batch holds completions in packed rows (each with its prompt is a segment; `mask` is True where
the policy chose the target), with columns (B, T) float32, every value at the target's position:

    advantage           how much better the choice was than expected
    old_logprob         the target's log-probability when the rollout was made, from a forward pass
                        like training's; left out, the batch is on-policy and every ratio is 1
    reference_logprob   the same by the frozen reference; needed where policy.kl_weight > 0
    return, old_value   ppo: what the value head should have said, and what it said

With r = exp(logprob - old_logprob) and A the advantage, a target adds

    grpo     -min(r A, clip(r) A) / |completion|       mean over completions (Shao et al. 2024)
    dr_grpo  -min(r A, clip(r) A) / max_tokens         mean over completions (Liu et al. 2025:
                                                       dividing by the length rewards long errors)
    cispo    -stop(clip(r)) A logprob                  mean over tokens (MiniMax-M1, 2025)
    ppo      -min(r A, clip(r) A), the value's error and an entropy bonus; mean over tokens
             (Schulman et al. 2017)

and kl_weight times the k3 estimate of KL(policy || reference), which is never negative (Schulman
2020). B rows, T positions, D the model's width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from sparrowlm.batch import Batch, Loss, Objective
from sparrowlm.config import PolicyConfig
from sparrowlm.objectives.balance import balanced
from sparrowlm.objectives.sequences import (
    completion_lengths,
    over,
    scored,
    spread,
    target_logprobs_and_entropy,
    zeroed_head,
)

Kind = Literal["grpo", "dr_grpo", "cispo", "ppo"]


class Policy(Objective):
    """A policy gradient on completions that were judged already.

    Args:
        kind: which of the four; `policy.loss`, or "ppo" for the stage of that name.
        settings: the `[policy]` table.
        max_tokens: dr_grpo: the constant that every completion is divided by.
        width: ppo: D, of the value head's input. The other kinds own no parameter.
    """

    def __init__(
        self, kind: Kind, settings: PolicyConfig, max_tokens: int = 1, width: int = 0
    ) -> None:
        super().__init__()
        self.kind, self.settings, self.max_tokens = kind, settings, max_tokens
        # "head": optim/groups.py gives heads to AdamW. Muon would make a row of any gradient.
        self.head = zeroed_head(width) if kind == "ppo" else None

    def count(self, batch: Batch) -> Tensor:
        """() completions; dr_grpo: times `max_tokens`; cispo, ppo: targets that count."""
        if self.kind in ("cispo", "ppo"):
            return batch.mask.sum()
        completions = (completion_lengths(batch) > 0).sum()
        return completions * self.max_tokens if self.kind == "dr_grpo" else completions

    def weights(self, batch: Batch, dtype: torch.dtype) -> Tensor:
        """(B, T) what a target that counts adds to the sum: 1, or for grpo one over the length of
        its completion; 0 where it does not count."""
        if self.kind != "grpo":
            return batch.mask.to(dtype)
        lengths = spread(completion_lengths(batch), batch.segments)
        return batch.mask.to(dtype) / lengths.clamp(min=1)

    def forward(self, model: nn.Module, batch: Batch) -> Loss:
        """The summed loss. Metrics: "loss" over `count`; "clipped" (the share of ratios that are
        clipped), "ratio", "entropy" and, with a reference, "kl" over targets; "length" over
        completions; ppo: "value_loss" over targets."""
        hidden, routing = model(batch.tokens, batch.segments)  # (B, T, D)
        bonus = self.kind == "ppo" and self.settings.entropy_weight > 0
        logprob, entropy = target_logprobs_and_entropy(model, hidden, batch, learned=bonus)
        old = batch.columns.get("old_logprob", logprob.detach())
        told = {"entropy": entropy}
        each, ratio = self._surrogate(logprob, old, batch.columns["advantage"])
        told["ratio"], told["clipped"] = ratio, self._clipped(ratio).to(ratio.dtype)
        if "reference_logprob" in batch.columns:
            told["kl"] = k3(logprob, batch.columns["reference_logprob"])
            if self.settings.kl_weight:
                each = each + self.settings.kl_weight * told["kl"]
        if self.head is not None:
            told["value_loss"] = self._value_loss(scored(self.head, hidden), batch)
            each = each + self.settings.value_weight * told["value_loss"]
            each = each - self.settings.entropy_weight * entropy
        weights = self.weights(batch, each.dtype)
        # A position that does not count may hold anything in its columns.
        total = torch.where(batch.mask, each * weights, 0.0).sum()
        metrics = {name: over(value, batch.mask) for name, value in told.items()}
        metrics["loss"] = torch.stack((total.detach(), self.count(batch).to(total.dtype)))
        completions = (completion_lengths(batch) > 0).sum()
        metrics["length"] = torch.stack((batch.mask.sum(), completions)).to(total.dtype)
        return balanced(Loss(total, metrics), routing, weights)

    @torch.no_grad()
    def judged(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """What `old_logprob` and `old_value` are to hold, each (B, T): the same computation as in
        `forward`, so that with the same rows in a micro-batch, and no dropout, the first ratio is
        exactly 1. The value is None without a value head."""
        hidden, _ = model(batch.tokens, batch.segments)
        logprob, _ = target_logprobs_and_entropy(model, hidden, batch)
        return logprob, None if self.head is None else scored(self.head, hidden)

    def _surrogate(self, logprob: Tensor, old: Tensor, advantage: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) the policy's loss of each target, and the ratio, detached."""
        ratio = (logprob - old).exp()
        clipped = ratio.clamp(1 - self.settings.clip, 1 + self._clip_high)
        if self.kind == "cispo":
            return -clipped.detach() * advantage * logprob, ratio.detach()
        return -torch.minimum(ratio * advantage, clipped * advantage), ratio.detach()

    @property
    def _clip_high(self) -> float:
        return self.settings.clip_high or self.settings.clip

    def _clipped(self, ratio: Tensor) -> Tensor:
        return (ratio < 1 - self.settings.clip) | (ratio > 1 + self._clip_high)

    def _value_loss(self, value: Tensor, batch: Batch) -> Tensor:
        """(B, T) half the squared error of a value that may move only `value_clip` from what it
        was when the rollout was made: the larger of the clipped and the free one."""
        wanted, old = batch.columns["return"], batch.columns["old_value"]
        free = (value - wanted).square()
        if not self.settings.value_clip:
            return free / 2
        limit = self.settings.value_clip
        held = old + (value - old).clamp(-limit, limit)
        return torch.maximum(free, (held - wanted).square()) / 2


def k3(logprob: Tensor, reference: Tensor) -> Tensor:
    """An unbiased estimate of KL(policy || reference) from the policy's own choices, never
    negative and of low variance: (q/p - 1) - log(q/p) (Schulman 2020, "Approximating KL
    divergence"). Any shape.

    >>> k3(torch.tensor([-1.0]), torch.tensor([-1.0]))
    tensor([0.])
    """
    ahead = reference - logprob
    return (torch.expm1(ahead) - ahead).clamp(min=0)


def group_advantages(rewards: Tensor, kind: Kind) -> Tensor:
    """How much better each completion of a group is than its group, (groups, G) like `rewards`.

    The mean is taken away, and but for dr_grpo the rest divided by the group's standard deviation
    (of n, not n - 1), which gives questions that are too easy or too hard the same weight as
    others (Liu et al. 2025 leave it out for that). A group of equal rewards has exactly 0.

    >>> group_advantages(torch.tensor([[1.0, 0, 0, 1], [1, 1, 1, 1]]), "dr_grpo")
    tensor([[ 0.5000, -0.5000, -0.5000,  0.5000],
            [ 0.0000,  0.0000,  0.0000,  0.0000]])
    """
    wide = rewards.double()
    apart = wide - wide.mean(-1, keepdim=True)
    if kind != "dr_grpo":
        apart = apart / (apart.square().mean(-1, keepdim=True).sqrt() + 1e-8)
    equal = (wide == wide[..., :1]).all(-1, keepdim=True)
    return apart.masked_fill(equal, 0.0).to(rewards.dtype)


def gae(rewards: Tensor, values: Tensor, discount: float, lambda_: float) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (Schulman et al. 2016) over whole completions.

    Args:
        rewards: (..., T) of every token that the policy chose, in order; tokens of others (a
            tool's answer) are left out.
        values: (..., T) what the value head said before each of them. Where completions of
            several lengths stand side by side, both are 0 behind the end of each.
        discount: gamma, of what is one token away.
        lambda_: 0 trusts the values, 1 the rewards alone.

    Returns:
        (..., T) advantages, and (..., T) returns, which are advantages + values. The value of
        what follows the last token is 0: a completion ends there.

    >>> gae(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.25]), 1.0, 0.5)[0]
    tensor([0.1250, 0.7500])
    """
    later = torch.cat((values[..., 1:], torch.zeros_like(values[..., :1])), -1)
    surprise = rewards + discount * later - values  # (..., T)
    advantages = torch.empty_like(surprise)
    running = torch.zeros_like(surprise[..., 0])
    for t in range(surprise.shape[-1] - 1, -1, -1):
        running = surprise[..., t] + discount * lambda_ * running
        advantages[..., t] = running
    return advantages, advantages + values
