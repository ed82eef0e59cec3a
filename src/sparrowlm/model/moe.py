"""Experts: several MLPs in the place of one, of which every token goes through a few.

    x ─ router ─ the k likeliest experts of each token, and their weights
    x ─ sorted by expert ─ one product for each group of tokens ─ put back, weighted, added up

No token is dropped, so a row comes out the same whatever rows stand beside it. The experts'
matrices are stacked into (E, rows, columns): an expert that no token of a batch goes to has a
gradient all the same, of zeros, and so takes part in reductions over ranks.

B rows, T positions, D the model's width, F an expert's, E experts, k of them for each token.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sparrowlm.config import ModelConfig
from sparrowlm.config.schema import GATED
from sparrowlm.config.schema import Mlp as MlpKind
from sparrowlm.model.head import product_dtype
from sparrowlm.model.mlp import bend


class Routing(NamedTuple):
    """How evenly experts share the tokens of each row. Every field belongs to one row alone, so
    that weighted by the row's targets it adds up over any cut into micro-steps and ranks."""

    penalty: Tensor
    """(B,) `balance_weight` times the balance: what a row's every target adds to the loss."""
    balance: Tensor
    """(B,) k where the tokens are spread evenly, up to E where k experts take them all."""
    largest: Tensor
    """(B,) the share of the row's tokens that goes through its busiest expert; k/E when even."""
    smallest: Tensor
    """(B,) the same of its idlest expert."""


class Experts(nn.Module):
    """Top-k experts (Shazeer et al. 2017), as Qwen3-MoE has them: softmax, then the k likeliest,
    whose weights add up to 1 where `norm_topk_prob` says so."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kind: MlpKind = config.mlp
        self.per_token, self.normalized = config.experts_per_token, config.norm_topk_prob
        self.balance_weight = config.balance_weight
        n, width, inner = config.n_experts, config.d_model, config.d_ff
        self.router = nn.Linear(width, n, bias=False)
        if config.mlp in GATED:
            self.gate = Stack(n, inner, width)
        self.up = Stack(n, inner, width)
        self.down = Stack(n, width, inner)

    def forward(self, x: Tensor, real: Tensor | None = None) -> tuple[Tensor, Routing]:
        """(B, T, D) to (B, T, D), and how the tokens were routed.

        Args:
            x: (B, T, D).
            real: (B, T) bool, False on padding, which does not count as routed. None: no padding.
        """
        odds, weights, chosen = self.route(x)
        mixed = self.mix(x.flatten(0, 1), weights.flatten(0, 1), chosen.flatten(0, 1))
        return mixed.view(x.shape), measure(odds, chosen, real, self.balance_weight)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The odds (..., E) of all experts, and the weights and numbers (..., k) of the chosen.

        In float32 under autocast too: rounded odds choose other experts (Fedus et al. 2021, 2.4).
        """
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            odds = torch.softmax(F.linear(x.to(wide), self.router.weight.to(wide)), -1)
        weights, chosen = odds.topk(self.per_token, -1)
        if self.normalized:
            weights = weights / weights.sum(-1, keepdim=True)
        return odds, weights, chosen

    def mix(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """(N, D) of tokens x (N, D), each through its experts `chosen` (N, k) by `weights`."""
        x = x.to(product_dtype(self.up.weight))
        groups = group(chosen, self.router.out_features, one_kernel=suits_one_kernel(x))
        x = _Take.apply(x, groups.order, groups.back, self.per_token)  # (N k, D), by expert
        gate = self.gate(x, groups) if self.kind in GATED else None
        y = self.down(bend(self.kind, self.up(x, groups), gate), groups)
        y = _Take.apply(y, groups.back, groups.order, 1).view(*chosen.shape, -1)  # (N, k, D)
        return (y * weights[..., None]).sum(1)


class Groups(NamedTuple):
    """N tokens of k experts each, sorted by expert."""

    order: Tensor
    """(N k,) which choice stands where, counted token by token."""
    back: Tensor
    """(N k,) where each choice stands: the inverse."""
    ends: Tensor
    """(E,) int32, where the choices of each expert end."""
    sizes: list[int] | None
    """The same as lengths, on the host; None where one kernel takes all groups."""


def group(chosen: Tensor, n_experts: int, *, one_kernel: bool) -> Groups:
    """Sort the choices (N, k) of experts 0 … n_experts - 1; equal ones keep their order."""
    experts, order = chosen.flatten().sort(stable=True)
    every = torch.arange(n_experts, device=chosen.device)
    ends = torch.searchsorted(experts, every, right=True).int()
    sizes = None if one_kernel else ends.diff(prepend=ends.new_zeros(1)).tolist()
    return Groups(order, order.argsort(), ends, sizes)


def suits_one_kernel(x: Tensor) -> bool:
    """Whether `F.grouped_mm` takes all groups at once: in bfloat16 on CUDA, where asking for the
    sizes would make the host wait. On a CPU it gains nothing: 252 ms forward and backward for 4
    groups of 1,024 x 512 by 512 x 1408, where one product for each takes 241, as does a single
    product of all tokens (one core of a 2.5 GHz Xeon, float32)."""
    return x.is_cuda and x.dtype == torch.bfloat16


class Stack(nn.Module):
    """A matrix (rows, columns) for each expert."""

    def __init__(self, n_experts: int, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_experts, rows, columns))

    def forward(self, x: Tensor, groups: Groups) -> Tensor:
        """(M, rows) of x (M, columns), where each group goes through its expert's matrix."""
        weight = self.weight.to(x.dtype)
        if groups.sizes is None:
            return F.grouped_mm(x, weight.mT, offs=groups.ends)
        parts = zip(x.split(groups.sizes), weight.unbind(), strict=True)
        return torch.cat([F.linear(part, matrix) for part, matrix in parts if len(part)])


class _Take(torch.autograd.Function):
    """Rows of x by `order`, every row `copies` times. The gradient is taken by the inverse order,
    and so added up in the same order every time; index_add's on a GPU is not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor, copies: int) -> Tensor:
        ctx.save_for_backward(back)
        ctx.copies = copies
        return x[order // copies]

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, None, None, None]:
        (back,) = ctx.saved_tensors
        return grads[0][back].unflatten(0, (-1, ctx.copies)).sum(1), None, None, None


def measure(odds: Tensor, chosen: Tensor, real: Tensor | None, weight: float) -> Routing:
    """How evenly the tokens of each row were routed.

    The balance is E times the sum over experts of the share of tokens that an expert gets and its
    mean odds (Fedus et al. 2021, equations 4 to 6): least where both are even. Only the odds have
    a gradient. Summed over k choices, as transformers' `load_balancing_loss_func` does.

    Args:
        odds: (B, T, E).
        chosen: (B, T, k) int64.
        real: (B, T) bool, False on padding; None: no padding.
        weight: of the balance in the loss.
    """
    n_experts = odds.shape[-1]
    used = (chosen[..., None] == torch.arange(n_experts, device=chosen.device)).any(2)  # (B, T, E)
    if real is None:
        load, mean = used.to(odds.dtype).mean(1), odds.mean(1)  # (B, E)
    else:
        counts = real[..., None].to(odds.dtype)  # (B, T, 1)
        size = counts.sum(1).clamp(min=1)
        load, mean = (used * counts).sum(1) / size, (odds * counts).sum(1) / size
    balance = n_experts * (load * mean).sum(-1)
    return Routing(weight * balance, balance, load.amax(-1), load.amin(-1))


def mean_routing(layers: list[Routing]) -> Routing | None:
    """The mean over layers; None where no layer has experts."""
    if not layers:
        return None
    return Routing(*(torch.stack(part).mean(0) for part in zip(*layers, strict=True)))
