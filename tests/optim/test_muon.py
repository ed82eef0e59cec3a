"""Muon against torch's own and against the algebra it stands for."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sparrowlm.optim import Group, Muon
from sparrowlm.optim.muon import orthogonalize


@pytest.mark.parametrize("shape", [(3, 64, 32), (2, 32, 96), (1, 48, 48)])
def test_singular_values_end_near_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape), torch.float32))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_singular_vectors_are_kept():
    torch.manual_seed(0)
    matrix = torch.randn(1, 24, 40, dtype=torch.float64)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalize(matrix, torch.float64)
    core = u.mT @ found @ vh.mT
    off_diagonal = core - torch.diag_embed(torch.diagonal(core, dim1=-2, dim2=-1))
    assert off_diagonal.abs().max() < 1e-10


def test_update_equals_torch_muon():
    """torch's Muon multiplies in bf16 whatever it is given, so the agreement is bf16's."""
    torch.manual_seed(0)
    ours = nn.Linear(64, 96, bias=False)
    theirs = copy.deepcopy(ours)
    mine = Muon([Group([ours.weight], 0.02, weight_decay=0.1)], dtype=torch.bfloat16)
    other = torch.optim.Muon(theirs.parameters(), lr=0.02, momentum=0.95, weight_decay=0.1)
    for _ in range(5):
        gradient = torch.randn(96, 64)
        before = ours.weight.detach().clone()
        ours.weight.grad, theirs.weight.grad = gradient.clone(), gradient.clone()
        mine.step()
        other.step()
        moved = (ours.weight - before).norm()
        assert (ours.weight - theirs.weight).norm() < 0.05 * moved


def test_stacked_equals_one_by_one():
    torch.manual_seed(0)
    together = nn.ModuleList([nn.Linear(32, 48, bias=False) for _ in range(4)])
    apart = copy.deepcopy(together)
    rules = [
        Muon([Group(list(layers.parameters()), 0.02, weight_decay=0.1)])
        for layers in (together, *apart)
    ]
    for _ in range(3):
        for one, other in zip(together.parameters(), apart.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for rule in rules:
            rule.step()
    for one, other in zip(together.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_experts_are_matrices_of_their_own():
    torch.manual_seed(0)
    experts = nn.Parameter(torch.randn(4, 16, 24))
    single = [nn.Parameter(experts.detach()[i].clone()) for i in range(4)]
    gradient = torch.randn_like(experts)
    experts.grad = gradient
    for parameter, part in zip(single, gradient, strict=True):
        parameter.grad = part.clone()
    Muon([Group([experts], 0.02)]).step()
    Muon([Group(single, 0.02)]).step()
    torch.testing.assert_close(experts, torch.stack(list(single)), rtol=0, atol=1e-6)
