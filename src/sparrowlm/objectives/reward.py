"""Learn to judge: a score for every sequence, higher for what was preferred.

Pairs as in `preference.py`. Bradley and Terry (1952) let the chosen answer win with probability
σ(score(chosen) - score(rejected)), and the loss is the surprise about the wins that were seen, as
Ouyang et al. (2022) train the judge of their policy. B rows, T positions, P = T // 2 pairs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparrowlm.batch import Batch, Loss, Objective
from sparrowlm.objectives.balance import balanced
from sparrowlm.objectives.preference import sides, told, whole_pairs
from sparrowlm.objectives.sequences import (
    completion_lengths,
    over,
    scored,
    segment_sums,
    zeroed_head,
)


class Reward(Objective):
    """The Bradley-Terry loss of a head that reads the end of each sequence.

    Args:
        width: D of the model.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        # "head": optim/groups.py gives heads to AdamW.
        self.head = zeroed_head(width)

    def count(self, batch: Batch) -> Tensor:
        """() pairs."""
        return whole_pairs(completion_lengths(batch)).sum()

    def forward(self, model: nn.Module, batch: Batch) -> Loss:
        """The summed surprise. Metrics, all over pairs: "loss", "accuracy", "margin",
        "chosen_reward", "rejected_reward"."""
        hidden, routing = model(batch.tokens, batch.segments)  # (B, T, D)
        chosen, rejected = sides(scores(self.head, hidden, batch.segments))
        real = whole_pairs(completion_lengths(batch))
        each = -F.logsigmoid(chosen - rejected)
        total = torch.where(real, each, 0.0).sum()
        metrics = told(chosen, rejected, real)
        metrics["loss"] = over(each, real)
        return balanced(Loss(total, metrics), routing, real)


def scores(head: nn.Linear, hidden: Tensor, segments: Tensor | None) -> Tensor:
    """(B, T) where entry [b, s] is the score of segment s of row b, read off its last position,
    and 0 where a row has no such segment. hidden (B, T, D), segments (B, T).

    A sequence's last id is a target alone (`data/packing.Item`), so the score has seen all of it
    but the token that ends it.
    """
    said = scored(head, hidden)  # (B, T)
    if segments is None:
        last = torch.zeros_like(said, dtype=torch.bool)
        last[:, -1] = True
    else:
        last = F.pad(segments[:, 1:] != segments[:, :-1], (0, 1), value=True) & (segments >= 0)
    return segment_sums(torch.where(last, said, 0.0), segments)
