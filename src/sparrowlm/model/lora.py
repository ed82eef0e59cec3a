"""Low-rank changes beside frozen weights (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

    y = W x + b + (alpha / r) B (A x)        W (out, in) frozen, A (r, in) and B (out, r) trained

B starts at zero, so an adapted model is at first the model that it came from, to the bit. Any
stage may train one: what differs is the model, not the loop. The trained tensors of
`blocks.0.attention.q` are `blocks.0.attention.q.lora_a` and `.lora_b`; its weight keeps its name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparrowlm.config import LoraConfig, lora_targets
from sparrowlm.errors import RunError
from sparrowlm.model.dropout import dropout
from sparrowlm.model.transformer import Transformer

ADAPTERS = (".lora_a", ".lora_b")
"""How the names of trained tensors end."""

Tensors = dict[str, Tensor]


class Change(NamedTuple):
    """What is added to one weight: `scale * b @ a`."""

    a: Tensor
    """(r, in)."""
    b: Tensor
    """(out, r)."""
    scale: float


class LoraLinear(nn.Linear):
    """A linear layer, frozen, with a low-rank change beside it.

    Args:
        linear: whose weight and bias it takes over, under the same names.
        config: rank, alpha and dropout.
        generator: of the first values of A.
    """

    def __init__(self, linear: nn.Linear, config: LoraConfig, generator: torch.Generator) -> None:
        rows, columns = linear.out_features, linear.in_features
        # On no device: the layer's own weights take the place of these.
        super().__init__(columns, rows, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.rank, self.scale = config.rank, config.alpha / config.rank
        self.dropout = config.dropout
        self.lora_a = nn.Parameter(linear.weight.new_empty(config.rank, columns))
        self.lora_b = nn.Parameter(linear.weight.new_zeros(rows, config.rank))
        # As a linear layer of PyTorch starts (and PEFT's A): uniform within 1/sqrt(in).
        bound = 1 / math.sqrt(columns)
        drawn = torch.rand(config.rank, columns, generator=generator) * 2 * bound - bound
        with torch.no_grad():
            self.lora_a.copy_(drawn)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        plain = F.linear(input, self.weight, self.bias)
        dropped = dropout(input, self.dropout, self.training)
        small = F.linear(dropped, self.lora_a) * self.scale  # (..., r)
        return plain + F.linear(small, self.lora_b)

    @property
    def change(self) -> Change:
        """What is added to the weight."""
        return Change(self.lora_a.detach(), self.lora_b.detach(), self.scale)


def adapt(model: Transformer, config: LoraConfig, seed: int) -> None:
    """Freeze a model and put a change beside each product that `config` names.

    Args:
        model: on its device, with its weights in place.
        config: `config.rank` is above zero.
        seed: of the first values of A, drawn on the CPU.

    Raises:
        ConfigError: names or numbers that do not fit the model, all of them.

    >>> adapt(model, LoraConfig(rank=8, targets=("q", "v")), seed=1337)
    >>> sorted({name.rpartition(".")[2] for name in trained_tensors(model)})
    ['lora_a', 'lora_b']
    """
    targets = lora_targets(config, model.config)
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    found = [
        (name, layer)
        for name, layer in model.blocks.named_modules()
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] in targets
    ]
    for name, layer in found:
        if isinstance(layer, LoraLinear):
            raise RuntimeError(f"{name} is adapted already")
        owner, _, own = name.rpartition(".")
        adapted = LoraLinear(layer, config, generator)
        setattr(model.blocks.get_submodule(owner), own, adapted.train(layer.training))


def trained_tensors(model: nn.Module) -> Tensors:
    """What a checkpoint holds of a model: everything, or the changes alone where the rest is
    frozen beside them."""
    state: Tensors = dict(model.state_dict())
    changes = {name: tensor for name, tensor in state.items() if name.endswith(ADAPTERS)}
    return changes or state


def full_weight(linear: nn.Linear) -> Tensor:
    """(out, in) what a layer multiplies by, its change included; detached."""
    weight = linear.weight.detach()
    return added(weight, linear.change) if isinstance(linear, LoraLinear) else weight


def added(weight: Tensor, change: Change) -> Tensor:
    """(out, in) a weight with its change in it."""
    a, b = (part.to(weight.device, weight.dtype) for part in (change.a, change.b))
    with torch.autocast(weight.device.type, enabled=False):
        return torch.addmm(weight, b, a, alpha=change.scale)


def changes_of(tensors: Mapping[str, Tensor], alpha: float) -> dict[str, Change]:
    """The change of each product, by the product's name.

    Args:
        tensors: `NAME.lora_a` (r, in) and `NAME.lora_b` (out, r); each product may have a rank of
            its own.
        alpha: the changes are scaled by alpha / r.

    Raises:
        RunError: one half of a change is missing, or the halves do not fit together.
    """
    found: dict[str, Change] = {}
    for product in sorted({name.rpartition(".")[0] for name in tensors}):
        a, b = (tensors.get(f"{product}{end}") for end in ADAPTERS)
        if a is None or b is None:
            raise RunError(f"lacks one half of the change of {product}")
        if a.ndim != 2 or b.ndim != 2 or not a.shape[0] or b.shape[1] != a.shape[0]:
            raise RunError(f"has halves of {product} that are {list(a.shape)} and {list(b.shape)}")
        found[product] = Change(a, b, alpha / a.shape[0])
    return found


def merge(weights: Mapping[str, Tensor], changes: Mapping[str, Change]) -> Tensors:
    """The weights of a plain model that computes what `weights` with the changes beside them do.

    Args:
        weights: of the plain model, which stays as it is.
        changes: by the name of their product.

    Raises:
        RunError: a change of a product that the model lacks or has in another shape.
    """
    merged = dict(weights)
    faults = []
    for product, change in changes.items():
        name = f"{product}.weight"
        shape = (change.b.shape[0], change.a.shape[1])
        if name not in weights:
            faults.append(f"{product} is not part of the model")
        elif weights[name].shape != shape:
            own = tuple(weights[name].shape)
            faults.append(f"{product} is {own} in the model and {shape} in the adapter")
        else:
            merged[name] = added(weights[name], change)
    if faults:
        raise RunError("does not fit the model: " + "; ".join(faults[:3]))
    return merged
