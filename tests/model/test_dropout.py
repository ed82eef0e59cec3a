"""Dropout against its definition: shares, independence, values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparrowlm.model.dropout import dropout, kept, whole

devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


def shares(*events: Tensor) -> list[float]:
    return [event.double().mean().item() for event in events]


@pytest.mark.parametrize("p", [0.0, 1e-3, 0.05, 0.2, 0.5, 0.9, 0.999])
def test_elements_are_kept_independently_with_their_probability(p: float) -> None:
    torch.manual_seed(1)
    p = whole(p)
    mask = kept((1000, 1003), p)
    assert mask.shape == (1000, 1003)
    assert mask.dtype == torch.bool
    share, error = 1 - p, 5 * (p * (1 - p) / mask.numel()) ** 0.5
    flat = mask.flatten()
    assert shares(mask) == pytest.approx([share], abs=error)
    # Neighbors, those whose bits come from one word (four), and from words that follow.
    for apart in (1, 2, 3, 4, 8):
        both = flat[apart:] & flat[:-apart]
        assert shares(both) == pytest.approx([share**2], abs=3 * error)
    assert shares(*(flat[place::4] for place in range(4))) == pytest.approx(
        [share] * 4, abs=2 * error
    )


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 1), (2, 3, 7), (0, 4)])
def test_masks_of_any_shape(shape: tuple[int, ...]) -> None:
    assert kept(shape, 0.5).shape == shape
    assert kept(shape, 0.0).all()


@devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_makes_up_for_what_is_dropped(dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(2)
    x = (1 + torch.rand(400, 500, device=device)).to(dtype).requires_grad_()
    out = dropout(x, 0.2, training=True)
    assert out.dtype == dtype
    mask = out != 0
    assert shares(mask) == pytest.approx([0.8], abs=0.005)
    torch.testing.assert_close(out[mask], x[mask] / 0.8)
    (slope,) = torch.autograd.grad(out, x, torch.full_like(out, 3.0))
    torch.testing.assert_close(slope, mask.to(dtype) * 3.75)


def test_sums_stay_at_any_probability() -> None:
    torch.manual_seed(5)
    x = torch.ones(20_000_000)
    for p in (1e-6, 0.3, 0.99, 0.9999, 0.9999999):
        out = dropout(x, p, training=True)
        error = 5 * (whole(p) / (1 - whole(p)) / x.numel()) ** 0.5
        assert out.mean().item() == pytest.approx(1, abs=error + 1e-5)
    assert whole(0.9999999) < 1


@devices
def test_the_seed_decides_and_evaluation_drops_nothing(device: str) -> None:
    x = torch.ones(50, 50, device=device)
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append(dropout(x, 0.5, training=True))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0, training=True) is x
