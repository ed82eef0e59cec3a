"""The MLP of a block, and the bends between its products."""

from __future__ import annotations

from typing import assert_never

import torch.nn.functional as F
from torch import Tensor, nn

from sparrowlm.config import ModelConfig
from sparrowlm.config.schema import GATED
from sparrowlm.config.schema import Mlp as MlpKind
from sparrowlm.model.head import product_dtype


class Mlp(nn.Module):
    """Two products with a bend between them, or three where one gates the other (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kind: MlpKind = config.mlp
        if config.mlp in GATED:
            self.gate = nn.Linear(config.d_model, config.d_ff, bias=config.bias)
        self.up = nn.Linear(config.d_model, config.d_ff, bias=config.bias)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D), by way of (B, T, F)."""
        x = x.to(product_dtype(x))
        gate = self.gate(x) if self.kind in GATED else None
        return self.down(bend(self.kind, self.up(x), gate))


def bend(kind: MlpKind, up: Tensor, gate: Tensor | None) -> Tensor:
    """What goes into the last product, (..., F).

    Args:
        kind: of the bend.
        up: (..., F).
        gate: (..., F), for the kinds in `GATED`.
    """
    match kind:
        case "swiglu" | "reglu":
            assert gate is not None
            return (F.silu(gate) if kind == "swiglu" else F.relu(gate)) * up
        case "gelu":
            return F.gelu(up)
        case "gelu_tanh":
            return F.gelu(up, approximate="tanh")
        case "relu":
            return F.relu(up)
        case "relu2":
            return F.relu(up).square()
        case never:
            assert_never(never)
