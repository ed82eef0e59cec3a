"""What every rule of stepping has: groups of parameters with a rate each, and buffers.

`torch.optim.Optimizer` would do as well, but to make one imports PyTorch's compiler, about two
seconds of every start.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass
class Group:
    """Parameters that are stepped at one rate."""

    params: list[nn.Parameter]
    peak: float
    """The learning rate that a schedule scales."""
    weight_decay: float = 0.0
    """Decoupled: a step takes the share `lr * weight_decay` from every weight."""
    lr: float = field(init=False)
    """Of the next step."""

    def __post_init__(self) -> None:
        self.lr = self.peak


class Rule(ABC):
    """Steps groups of parameters.

    Args:
        groups: no parameter is in two.
    """

    def __init__(self, groups: Iterable[Group]) -> None:
        self.groups = list(groups)
        self.state: dict[Tensor, dict[str, Tensor]] = defaultdict(dict)
        """Buffers of every parameter that was stepped, by their names."""

    @abstractmethod
    def step(self) -> None:
        """One update of every parameter that has a gradient."""
