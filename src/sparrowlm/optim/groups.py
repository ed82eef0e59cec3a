"""Every trainable parameter in exactly one group, and the optimizers as one thing.

    matrices   two-dimensional weights inside the blocks      Muon, or AdamW; decayed
    tables     embeddings, positions, the head                AdamW; decayed only without Muon
    vectors    norms and biases                               AdamW; never decayed
    adapters   low-rank changes (`model.lora`)                AdamW; decayed

A parameter that is in none, or in two, stops the run before it starts. Adapters are AdamW's under
Muon too: Muon makes all singular values of a step alike, which says something of a whole weight,
but B A is what changes, and A's share of it depends on the length of B, which starts at zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from sparrowlm.config import OptimConfig
from sparrowlm.errors import RunError
from sparrowlm.optim.adamw import AdamW
from sparrowlm.optim.muon import Muon
from sparrowlm.optim.rule import Group, Rule

Named = dict[str, nn.Parameter]
ADAPTERS = (".lora_a", ".lora_b")  # as `model.lora` names them


def split_parameters(module: nn.Module) -> dict[str, Named]:
    """Sort the parameters that require a gradient into matrices, tables, vectors and adapters.

    Args:
        module: the model, or a module that holds the model and its objective.
    """
    tables = {
        id(parameter)
        for name, child in module.named_modules()
        if isinstance(child, nn.Embedding) or name.rpartition(".")[2] == "head"
        for parameter in child.parameters(recurse=False)
    }
    groups: dict[str, Named] = {"matrices": {}, "tables": {}, "vectors": {}, "adapters": {}}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2:
            groups["vectors"][name] = parameter
        elif name.endswith(ADAPTERS):
            groups["adapters"][name] = parameter
        elif id(parameter) in tables:
            groups["tables"][name] = parameter
        else:
            groups["matrices"][name] = parameter
    return groups


class Optimizers:
    """AdamW, and Muon where it is asked for, stepped and saved as one.

    Args:
        rules: no two of which have a parameter in common.
        names: parameter to name, for the saved state.
    """

    def __init__(self, rules: list[Rule], names: dict[Tensor, str]) -> None:
        self.rules = rules
        self.names = names

    def set_scale(self, scale: float) -> None:
        """Set every learning rate to its peak times `scale`."""
        for rule in self.rules:
            for group in rule.groups:
                group.lr = group.peak * scale

    def step(self) -> None:
        """Apply the gradients."""
        for rule in self.rules:
            rule.step()

    def zero_grad(self) -> None:
        """Forget the gradients and free their memory."""
        for parameter in self.names:
            parameter.grad = None

    def parameters(self) -> Iterable[Tensor]:
        """All parameters, in a fixed order."""
        return self.names.keys()

    def state_tensors(self) -> dict[str, Tensor]:
        """`{"<parameter>/<buffer>": tensor}`, ready for a safetensors file."""
        return {
            f"{self.names[parameter]}/{key}": value
            for rule in self.rules
            for parameter, state in rule.state.items()
            for key, value in state.items()
        }

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put saved buffers back, on their parameter's device.

        Raises:
            RunError: a buffer names no parameter of this run, or has another shape.
        """
        owners = {
            self.names[parameter]: (rule, parameter)
            for rule in self.rules
            for group in rule.groups
            for parameter in group.params
        }
        for full, value in tensors.items():
            name, _, key = full.rpartition("/")
            if name not in owners:
                raise RunError(f"has optimizer state for {name}, which this run does not train")
            rule, parameter = owners[name]
            if value.ndim and value.shape != parameter.shape:
                raise RunError(f"{full} is {tuple(value.shape)}, not {tuple(parameter.shape)}")
            rule.state[parameter][key] = value.to(parameter.device)


def build_optimizers(
    module: nn.Module, config: OptimConfig, *, muon_dtype: torch.dtype = torch.float32
) -> Optimizers:
    """The optimizers of a run.

    Args:
        module: what is trained.
        config: the `[optim]` table.
        muon_dtype: of the Newton-Schulz products.

    Raises:
        RuntimeError: a parameter is in no group or in two (our mistake, so a traceback).
    """
    named = split_parameters(module)
    decay = config.weight_decay
    decays = {"vectors": 0.0, "adapters": decay, "tables": decay, "matrices": decay}
    muon: list[Group] = []
    if config.name == "muon":
        # Tables step once for each token seen: decay would shrink the rows of rare ones.
        decays["tables"] = 0.0
        muon = _groups(named, config.muon_lr, {"matrices": decays.pop("matrices")})
    adam = _groups(named, config.lr, decays)
    rules: list[Rule] = [AdamW(adam, (config.beta1, config.beta2), config.eps)]
    if muon:
        rules.append(Muon(muon, config.momentum, muon_dtype))
    names: dict[Tensor, str] = {p: name for group in named.values() for name, p in group.items()}
    stepped = [id(p) for rule in rules for group in rule.groups for p in group.params]
    if sorted(stepped) != sorted(id(p) for p in module.parameters() if p.requires_grad):
        raise RuntimeError("a trainable parameter is not in exactly one optimizer group")
    return Optimizers(rules, names)


def _groups(named: dict[str, Named], rate: float, decays: dict[str, float]) -> list[Group]:
    """A group of each kind of parameter that there is."""
    return [
        Group(list(named[kind].values()), rate, decay)
        for kind, decay in decays.items()
        if named[kind]
    ]
