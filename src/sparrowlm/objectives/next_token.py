"""Predict what comes next: the objective of pretraining."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparrowlm.batch import Batch, Loss, Objective
from sparrowlm.model.head import summed_nll


class NextToken(Objective):
    """The nats of every target that counts."""

    def count(self, batch: Batch) -> Tensor:
        """() how many targets count."""
        return batch.mask.sum()

    def forward(self, model: nn.Module, batch: Batch) -> Loss:
        """The summed nats; `metrics["loss"]` is (nats, tokens)."""
        hidden = model(batch.tokens, batch.segments).hidden  # (B, T, D)
        total = summed_nll(
            hidden.flatten(0, 1), model.head_weight, batch.targets.flatten(), batch.mask.flatten()
        )
        count = self.count(batch)
        return Loss(total, {"loss": torch.stack((total.detach(), count.to(total.dtype)))})
