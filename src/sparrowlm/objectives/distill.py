"""Learn from a larger model: what it would have said, and not only what was said.

B rows, T positions, D the student's width, E the teacher's.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from sparrowlm.batch import Batch, Loss, Objective
from sparrowlm.config import DistillConfig
from sparrowlm.model.divergence import Side, summed_divergence
from sparrowlm.objectives.balance import balanced


class Distill(Objective):
    """The divergence from a frozen teacher, mixed with next-token cross-entropy.

    Args:
        teacher: on the device, without gradients. It is no part of the objective's parameters:
            neither trained nor saved.
        settings: the `[distill]` table.
        byte_lengths: as in `NextToken`.
    """

    byte_lengths: Tensor | None

    def __init__(
        self, teacher: nn.Module, settings: DistillConfig, byte_lengths: Tensor | None = None
    ) -> None:
        super().__init__()
        self.settings = settings
        self.held = (teacher,)  # a tuple: a module set on a module becomes a part of it
        self.register_buffer("byte_lengths", byte_lengths, persistent=False)

    @property
    def teacher(self) -> nn.Module:
        """The larger model."""
        return self.held[0]

    def count(self, batch: Batch) -> Tensor:
        """() how many targets count."""
        return batch.mask.sum()

    def forward(self, model: nn.Module, batch: Batch) -> Loss:
        """The summed mixture. Metrics over targets: "loss", "cross_entropy" (the nats of the
        targets alone) and "divergence" (at the temperature, not scaled); "bits_per_byte"."""
        hidden, routing = model(batch.tokens, batch.segments)  # (B, T, D)
        with torch.no_grad():
            theirs, _ = self.teacher(batch.tokens, batch.segments)  # (B, T, E)
        said = summed_divergence(
            _side(model, hidden),
            _side(self.teacher, theirs),
            batch.targets.flatten(),
            batch.mask.flatten(),
            direction=self.settings.loss,
            temperature=self.settings.temperature,
            weight=self.settings.weight,
        )
        nats = said.nll.detach()
        tokens = self.count(batch).to(nats.dtype)
        metrics = {
            "loss": torch.stack((said.total.detach(), tokens)),
            "cross_entropy": torch.stack((nats, tokens)),
            "divergence": torch.stack((said.divergence.detach(), tokens)),
        }
        if self.byte_lengths is not None:
            size = (self.byte_lengths[batch.targets] * batch.mask).sum()
            metrics["bits_per_byte"] = torch.stack((nats / math.log(2), size.to(nats.dtype)))
        return balanced(Loss(said.total, metrics), routing, batch.mask)


def _side(model: nn.Module, hidden: Tensor) -> Side:
    """A model's hidden states (B, T, D) with the table that makes logits of them."""
    weight, bias = cast(Tensor, model.head_weight), cast(Tensor | None, model.head_bias)
    return Side(hidden.flatten(0, 1), weight, bias)
