"""Prefer one answer to another: DPO and its kin.

A batch holds pairs in packed rows, the chosen answer with its prompt in an even segment, the
rejected one in the odd segment behind it; `mask` is True on the answers. The column
`reference_logprob` (B, T) float32 holds what the frozen reference says of each target; orpo and
simpo have no reference.

With c and r the summed log-probabilities of a pair's answers, less the reference's where there is
one, and c', r' their means over tokens, a pair adds

    sigmoid  -(1 - s) log σ(β(c - r)) - s log σ(-β(c - r))           Rafailov et al. 2023, with
                                                        label smoothing s (Mitchell 2023)
    ipo      (c - r - 1/(2β))²                                       Azar et al. 2023
    orpo     -c' - β log σ(odds(c') - odds(r'))                      Hong et al. 2024, with
                                                        odds(x) = x - log(1 - exp(x))
    simpo    -log σ(β(c' - r') - margin)                             Meng et al. 2024

and a completion with log-ratio x, alone or of a pair,

    kto      w (1 - σ(β(x - z))) where wanted, w (1 - σ(β(z - x))) where not
                                                                     Ethayarajh et al. 2024

KTO's z is what the policy has moved from the reference on completions that do not belong to their
prompts, at least 0 and detached; column `reference_point`, one number for the whole step
(`train/mismatch.py`), 0 where it is left out. Column `label` says what is wanted (1) and what not
(0); without it a pair is one of each. B rows, T positions, P = T // 2 places for pairs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparrowlm.batch import Batch, Loss, Objective
from sparrowlm.config import PreferenceConfig
from sparrowlm.objectives.balance import balanced
from sparrowlm.objectives.sequences import completion_lengths, over, segment_sums, target_logprobs

WITHOUT_REFERENCE = ("orpo", "simpo")


class Preference(Objective):
    """Five ways to learn from preferences, by `settings.loss`."""

    def __init__(self, settings: PreferenceConfig) -> None:
        super().__init__()
        self.settings = settings

    def count(self, batch: Batch) -> Tensor:
        """() pairs; kto: completions."""
        lengths = completion_lengths(batch)
        return ((lengths > 0) if self.settings.loss == "kto" else whole_pairs(lengths)).sum()

    def forward(self, model: nn.Module, batch: Batch) -> Loss:
        """The summed loss. Metrics: "loss" over `count`; over pairs "accuracy" (the chosen answer
        has the higher reward), "margin", "chosen_reward" and "rejected_reward"; of labelled
        completions see `_kto`."""
        hidden, routing = model(batch.tokens, batch.segments)  # (B, T, D)
        logprob = target_logprobs(model, hidden, batch)
        if self.settings.loss not in WITHOUT_REFERENCE:
            logprob = logprob - batch.columns["reference_logprob"] * batch.mask
        lengths, sums = completion_lengths(batch), segment_sums(logprob, batch.segments)
        if self.settings.loss == "kto":
            each, metrics = self._kto(sums, lengths, batch)  # (B, T)
            real = lengths > 0
        else:
            each, rewards = self._pairs(sums, lengths)  # (B, P), two of (B, P)
            real = whole_pairs(lengths)
            metrics = told(*rewards, real)
        total = torch.where(real, each, 0.0).sum()
        metrics["loss"] = torch.stack((total.detach(), self.count(batch).to(total.dtype)))
        return balanced(Loss(total, metrics), routing, real)

    def _pairs(self, sums: Tensor, lengths: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(B, P) each pair's loss, and the rewards of both sides."""
        beta = self.settings.beta
        if self.settings.loss in WITHOUT_REFERENCE:
            sums = sums / lengths.clamp(min=1)
        chosen, rejected = sides(sums)
        ahead = chosen - rejected
        match self.settings.loss:
            case "sigmoid":
                smooth = self.settings.label_smoothing
                right, wrong = F.logsigmoid(beta * ahead), F.logsigmoid(-beta * ahead)
                each = -(1 - smooth) * right - smooth * wrong
            case "ipo":
                each = (ahead - 1 / (2 * beta)).square()
            case "orpo":
                real = whole_pairs(lengths)
                odds = log_odds(chosen, real) - log_odds(rejected, real)
                each = -chosen - beta * F.logsigmoid(odds)
            case "simpo":
                each = -F.logsigmoid(beta * ahead - self.settings.margin)
            case "kto":
                raise TypeError("kto has no pairs")
        return each, (beta * chosen, beta * rejected)

    def _kto(
        self, ratios: Tensor, lengths: Tensor, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, T) each completion's loss. Labelled completions have "accuracy" (the reward of what
        is wanted is above the reference point, of what is not below) and the two rewards, but no
        margin."""
        beta = self.settings.beta
        wanted, real = wanted_segments(batch), lengths > 0
        point = reference_point(batch, ratios)
        ahead = beta * (ratios - point)
        each = torch.where(
            wanted,
            self.settings.desirable_weight * torch.sigmoid(-ahead),
            self.settings.undesirable_weight * torch.sigmoid(ahead),
        )
        if "label" not in batch.columns:
            return each, told(*sides(beta * ratios), whole_pairs(lengths))
        right = torch.where(wanted, ahead > 0, ahead < 0).to(ratios.dtype)
        return each, {
            "accuracy": over(right, real),
            "chosen_reward": over(beta * ratios, real & wanted),
            "rejected_reward": over(beta * ratios, real & ~wanted),
        }


def sides(values: Tensor) -> tuple[Tensor, Tensor]:
    """Two of (B, P): the chosen and the rejected sequences' entries of (B, T), which are in the
    order of segments.

    >>> sides(torch.tensor([[1, 2, 3, 4, 5]]))
    (tensor([[1, 3]]), tensor([[2, 4]]))
    """
    even = values[:, : values.shape[1] // 2 * 2]
    return even[:, 0::2], even[:, 1::2]


def whole_pairs(lengths: Tensor) -> Tensor:
    """(B, P) bool: where both sequences of a pair have a target that counts, of their numbers
    (B, T)."""
    chosen, rejected = sides(lengths)
    return (chosen > 0) & (rejected > 0)


def wanted_segments(batch: Batch) -> Tensor:
    """(B, T) bool: which segments are wanted, by their label or by their side of a pair."""
    if "label" in batch.columns:
        return segment_sums(batch.columns["label"] * batch.mask, batch.segments) > 0
    places = torch.arange(batch.mask.shape[1], device=batch.mask.device)
    return (places % 2 == 0).expand_as(batch.mask)


def reference_point(batch: Batch, like: Tensor) -> Tensor:
    """() KTO's z, which every position holds; 0 where the batch brings none."""
    if "reference_point" not in batch.columns:
        return like.new_zeros(())
    return batch.columns["reference_point"].amax().detach().to(like.dtype)


def log_odds(logprob: Tensor, real: Tensor) -> Tensor:
    """log(p / (1 - p)) of log p, at 0 where not `real`; p = 1 is taken as the largest p below it.

    >>> log_odds(torch.tensor([0.25]).log(), torch.tensor([True]))
    tensor([-1.0986])
    """
    safe = torch.where(real, logprob, -1.0).clamp(max=-torch.finfo(logprob.dtype).eps)
    return safe - torch.log(-torch.expm1(safe))


def told(chosen: Tensor, rejected: Tensor, real: Tensor) -> dict[str, Tensor]:
    """The metrics of pairs, of their rewards (B, P)."""
    return {
        "accuracy": over((chosen > rejected).to(chosen.dtype), real),
        "margin": over(chosen - rejected, real),
        "chosen_reward": over(chosen, real),
        "rejected_reward": over(rejected, real),
    }
