"""Products with weights that do not change, perhaps of 8 bits."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Weights = Literal["full", "int8"]

FEW = 8
"""Rows up to which the kernel of 8 bits is faster: it saves reading, but multiplies more slowly
(docs/performance.md)."""


class Product:
    """A linear map, perhaps of several layers at once.

    Args:
        weight: (out, in).
        bias: (out,).
        dtype: of the products.
        weights: "int8" rounds every row of the weights to whole numbers from -127 to 127 times a
            scale of its own.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        dtype: torch.dtype,
        weights: Weights = "full",
    ) -> None:
        self.dtype, self.size = dtype, weight.numel()
        self.bias = None if bias is None else bias.to(dtype)
        self.whole: tuple[Tensor, Tensor] | None = None
        if weights == "int8":
            scale = (weight.abs().amax(1) / 127).clamp(min=1e-12).to(dtype)  # (out,)
            rounded = (weight / scale[:, None].to(weight.dtype)).round().clamp(-127, 127)
            weight = rounded * scale[:, None].to(weight.dtype)
            if _multiplies_int8(weight, dtype):
                self.whole = rounded.to(torch.int8), scale
        weight = weight.to(dtype)
        self.weight = weight.t()  # (in, out): a view, as `F.linear` would make it at every call

    def __call__(self, x: Tensor) -> Tensor:
        """(M, out) of x (M, in)."""
        x = x.to(self.dtype)
        if self.whole is not None and len(x) <= FEW:
            y = torch.ops.aten._weight_int8pack_mm(x, *self.whole)
            return y if self.bias is None else y + self.bias
        if self.bias is None:
            return torch.mm(x, self.weight)
        return torch.addmm(self.bias, x, self.weight)


def _multiplies_int8(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether the kernel takes this shape; it reads past the end of others."""
    return (
        weight.device.type == "cpu"
        and dtype == torch.bfloat16
        and all(n % 32 == 0 for n in weight.shape)
    )
