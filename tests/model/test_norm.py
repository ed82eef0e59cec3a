"""The written-out gradients against autograd's."""

from __future__ import annotations

import pytest
import torch

from sparrowlm.model.norm import RMSNorm
from sparrowlm.model.rotary import rotary_angles, rotate


def test_rms_norm_against_torch_with_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = RMSNorm(12, 1e-6).double(), torch.nn.RMSNorm(12, 1e-6).double()
    for norm in (ours, theirs):
        norm.weight.data.copy_(torch.linspace(0.5, 2, 12))
    x = torch.randn(3, 5, 12, generator=generator, dtype=torch.float64).requires_grad_()
    seed = torch.randn(3, 5, 12, generator=generator, dtype=torch.float64)
    assert "_RMSNorm" in ours(x).grad_fn.name()
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-12, rtol=1e-12)
    pairs = zip(
        torch.autograd.grad(ours(x), (x, ours.weight), seed),
        torch.autograd.grad(theirs(x), (x, theirs.weight), seed),
        strict=True,
    )
    for got, want in pairs:
        torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-12)


def test_rms_norm_of_zeros_has_a_finite_gradient() -> None:
    x = torch.zeros(2, 8, requires_grad=True)
    RMSNorm(8, 1e-6)(x).sum().backward()
    assert x.grad.isfinite().all()


def test_rotation_passes_gradcheck_and_keeps_lengths() -> None:
    x = torch.randn(1, 4, 2, 6, dtype=torch.float64, requires_grad=True)
    angles = rotary_angles(torch.arange(4)[None], 6, 100.0, torch.float64)
    assert torch.autograd.gradcheck(lambda x: rotate(x, *angles), x)
    torch.testing.assert_close(rotate(x, *angles).norm(dim=-1), x.norm(dim=-1))
    with torch.no_grad():
        torch.testing.assert_close(rotate(x, *angles)[:, 0], x[:, 0])


@pytest.mark.parametrize("distance", [1, 3])
def test_scores_depend_on_the_distance_alone(distance: int) -> None:
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    scores = []
    for place in (0, 11):
        places = torch.tensor([[place], [place + distance]])
        near, far = (rotary_angles(each[None], 8, 100.0, torch.float64) for each in places)
        scores.append((rotate(q, *far) * rotate(k, *near)).sum())
    torch.testing.assert_close(*scores)
