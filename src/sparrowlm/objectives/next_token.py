"""Predict what comes next: the objective of pretraining."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from sparrowlm.batch import Batch, Loss, Objective
from sparrowlm.model.head import summed_nll
from sparrowlm.objectives.balance import balanced


class NextToken(Objective):
    """The nats of every target that counts.

    Args:
        byte_lengths: (vocab_size,) int64 bytes of each id, 0 for specials; None where no
            tokenizer tells, and then there are no bits per byte.
    """

    byte_lengths: Tensor | None

    def __init__(self, byte_lengths: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("byte_lengths", byte_lengths, persistent=False)

    def count(self, batch: Batch) -> Tensor:
        """() how many targets count."""
        return batch.mask.sum()

    def forward(self, model: nn.Module, batch: Batch) -> Loss:
        """The summed nats, and the experts' balance. `metrics["loss"]` is (nats, tokens), and
        `metrics["bits_per_byte"]` (bits, bytes of the counted targets)."""
        hidden, routing = model(batch.tokens, batch.segments)  # (B, T, D)
        weight = cast(Tensor, model.head_weight)  # (V, D)
        bias = cast(Tensor | None, model.head_bias)  # (V,)
        total = summed_nll(
            hidden.flatten(0, 1), weight, batch.targets.flatten(), batch.mask.flatten(), bias
        )
        nats = total.detach()
        metrics = {"loss": torch.stack((nats, self.count(batch).to(nats.dtype)))}
        if self.byte_lengths is not None:
            size = (self.byte_lengths[batch.targets] * batch.mask).sum()
            metrics["bits_per_byte"] = torch.stack((nats / math.log(2), size.to(nats.dtype)))
        return balanced(Loss(total, metrics), routing, batch.mask)
