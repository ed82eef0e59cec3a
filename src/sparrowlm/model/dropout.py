"""Dropout (Srivastava et al. 2014), with a mask that a CPU draws quickly.

On a CPU, PyTorch draws a number in double precision for each element, on one thread, which takes
7.8 ns. Sixteen random bits decide as well in 1.1 (docs/performance.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

FATES = 1 << 16
"""What the bits of an element can say; `p` is a whole number of these."""


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Zero each element with probability `p` and divide the others by 1 - p; in evaluation, `x`.

    Args:
        x: of any shape.
        p: at least 0 and below 1; on a CPU, the nearest multiple of 2^-16 below 1.
        training: whether anything is to be dropped.
    """
    if not training or not p:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    p = whole(p)
    return (x * kept(x.shape, p)).mul_(1 / (1 - p))


def whole(p: float) -> float:
    """The nearest probability below 1 that sixteen bits decide exactly."""
    return min(round(p * FATES), FATES - 1) / FATES


def kept(shape: Sequence[int], p: float) -> Tensor:
    """A mask on the CPU, True with probability 1 - p of a `whole` p, by PyTorch's generator."""
    size = math.prod(shape)
    words = torch.randint(
        -(1 << 63), (1 << 63) - 1, (-(-size // 4),)
    )  # even but for the last value
    bits = words.view(torch.int16)[:size].view(shape)  # from -FATES/2 to FATES/2 - 1
    return bits >= round(p * FATES) - FATES // 2
