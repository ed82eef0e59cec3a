"""Dropout (Srivastava et al. 2014), with a mask that a CPU draws quickly.

On a CPU, PyTorch draws a number in double precision for each element, on one thread: 7.8 ns, two
fifths of a small model's step. Sixteen random bits decide as well in 1.1 (docs/performance.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

BITS = 16


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Zero each element with probability `p` and divide the others by 1 - p; in evaluation, `x`.

    Args:
        x: of any shape.
        p: at least 0 and below 1.
        training: whether anything is to be dropped.
    """
    if not training or not p:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    return (x * kept(x.shape, p)).mul_(1 / (1 - p))


def kept(shape: Sequence[int], p: float) -> Tensor:
    """A mask on the CPU, True with probability 1 - p: to within 2^-16, as `p` is rounded down.

    PyTorch's generator is drawn from, so its seed decides the mask.
    """
    size = math.prod(shape)
    words = torch.empty(-(-size * BITS // 64), dtype=torch.int64).random_(-(1 << 63), None)
    bits = words.view(torch.int16)[:size].view(shape)  # even from -2^15 to 2^15 - 1
    return bits >= int(p * (1 << BITS)) - (1 << (BITS - 1))
