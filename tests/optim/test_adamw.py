"""AdamW against torch's own, and what it leaves out."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from sparrowlm.config import OptimConfig
from sparrowlm.optim import AdamW, Group, build_optimizers, groups


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_torch_to_the_bit_also_where_a_gradient_is_missing(dtype):
    torch.manual_seed(0)
    ours = nn.ModuleList([nn.Linear(24, 40), nn.Linear(40, 8)]).to(dtype)
    theirs = copy.deepcopy(ours)
    decays = (0.1, 0.0)
    mine = AdamW(
        [Group(list(m.parameters()), 1e-2, d) for m, d in zip(ours, decays, strict=True)],
        betas=(0.9, 0.95),
    )
    other = torch.optim.AdamW(
        [
            {"params": m.parameters(), "weight_decay": d}
            for m, d in zip(theirs, decays, strict=True)
        ],
        lr=1e-2,
        betas=(0.9, 0.95),
        fused=True,
    )
    for step in range(6):
        for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
            one.grad = None if step == 2 and one.ndim == 1 else torch.randn_like(one)
            two.grad = None if one.grad is None else one.grad.clone()
        for group in mine.groups:
            group.lr = 1e-2 / (step + 1)
        for group in other.param_groups:
            group["lr"] = 1e-2 / (step + 1)
        mine.step()
        other.step()
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, two)
        for key, value in other.state[two].items():
            assert torch.equal(mine.state[one][key], value), key


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_that_is_saved_and_loaded_goes_on_alike(name):
    torch.manual_seed(0)
    straight = nn.Sequential(nn.Linear(8, 12, bias=False), nn.LayerNorm(12))
    resumed = copy.deepcopy(straight)
    config = OptimConfig(name=name)
    first, second = (build_optimizers(module, config) for module in (straight, resumed))
    for step in range(6):
        for one, two in zip(straight.parameters(), resumed.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            two.grad = one.grad.clone()
        if step == 3:
            saved = {key: value.clone() for key, value in second.state_tensors().items()}
            second = build_optimizers(resumed, config)
            second.load_state_tensors(saved)
        first.step()
        second.step()
    for one, two in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_parameter_that_nothing_would_step_is_found(name, monkeypatch):
    """Of a kind that has no group yet, or one that is in two."""
    layer = nn.Linear(4, 4)
    matrix, vector = {"weight": layer.weight}, {"bias": layer.bias}
    none: dict[str, nn.Parameter] = {}
    for vectors, others in ((none, vector), (vector | matrix, none)):
        kinds = {"matrices": matrix, "tables": none, "vectors": vectors, "adapters": none}
        monkeypatch.setattr(groups, "split_parameters", lambda _, k=kinds | {"new": others}: k)
        with pytest.raises(RuntimeError, match="exactly one optimizer group"):
            build_optimizers(layer, OptimConfig(name=name))


def test_a_step_does_not_load_the_compiler():
    """Two seconds of every start, and of every test that starts a run."""
    code = (
        "import sys, torch\n"
        "from sparrowlm.config import OptimConfig\n"
        "from sparrowlm.optim import build_optimizers\n"
        "layer = torch.nn.Linear(4, 4)\n"
        "optimizers = build_optimizers(layer, OptimConfig(name='muon'))\n"
        "layer(torch.ones(2, 4)).sum().backward()\n"
        "optimizers.step()\n"
        "optimizers.zero_grad()\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout.strip() == "False"
