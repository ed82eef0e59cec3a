"""Attention against the fused kernel, the closed form and numerical gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sparrowlm.model import attention
from sparrowlm.model.attention import cached_attention, causal_attention
from sparrowlm.model.dropout import kept

STARTS = torch.tensor(
    [[0] * 13, [0] * 6 + [6] * 7, [0, 1, 2, 2, 2, 2, 2, 2, 8, 8, 8, 8, 12]]
)  # (3, 13)


def heads(n_heads: int, n_kv_heads: int) -> list[Tensor]:
    """Queries, keys and values of 3 rows of 13 positions, 6 wide."""
    generator = torch.Generator().manual_seed(n_heads)
    shapes = [(3, 13, n, 6) for n in (n_heads, n_kv_heads, n_kv_heads)]
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [tensor.requires_grad_() for tensor in drawn]


def plain(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, factors: Tensor | None = None
) -> Tensor:
    """Softmax(q k / sqrt(H)) v, written out (Vaswani et al. 2017); with (B, N, T, T) `factors`,
    each weight times its own."""
    share, places = q.shape[2] // k.shape[2], torch.arange(q.shape[1], device=q.device)
    k, v = k.repeat_interleave(share, 2), v.repeat_interleave(share, 2)
    scores = torch.einsum("btnh,bsnh->bnts", q, k) / math.sqrt(q.shape[3])
    hidden = places > places[:, None]
    if starts is not None:
        hidden = (hidden | (places < starts[:, :, None]))[:, None]
    weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
    if factors is not None:
        weights = weights * factors
    return torch.einsum("bnts,bsnh->btnh", weights, v)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that do not divide the row, and groups that do not divide the rows."""
    small = dict.fromkeys(attention.BLOCKED, (5, range(13, 14)))
    monkeypatch.setattr(attention, "BLOCKED", small)
    monkeypatch.setattr(attention, "STEP", 2)


shapes = pytest.mark.parametrize("shape", [(4, 4), (4, 2), (4, 1)])
documents = pytest.mark.parametrize("starts", [None, STARTS], ids=["plain", "documents"])


@shapes
@documents
@pytest.mark.usefixtures("small_blocks")
def test_blocks_give_the_gradients_of_the_plain_form(shape, starts) -> None:
    q, k, v = heads(*shape)
    assert attention.block_size("cpu", 13, q.dtype.itemsize) == 5
    got, want = causal_attention(q, k, v, starts=starts), plain(q, k, v, starts)
    assert got.grad_fn is not None
    assert "Blocked" in got.grad_fn.name()
    torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-12)
    seed = torch.randn(got.shape, generator=torch.Generator().manual_seed(0), dtype=got.dtype)
    pairs = zip(
        torch.autograd.grad(got, (q, k, v), seed),
        torch.autograd.grad(want, (q, k, v), seed),
        strict=True,
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


@documents
@pytest.mark.usefixtures("small_blocks")
def test_blocks_pass_gradcheck(starts) -> None:
    tensors = [tensor[:, :, :, :3].detach().requires_grad_() for tensor in heads(2, 1)]
    assert torch.autograd.gradcheck(lambda *x: causal_attention(*x, starts=starts), tensors)


@shapes
@documents
def test_fused_kernel_gives_the_plain_form(shape, starts) -> None:
    q, k, v = heads(*shape)
    with torch.no_grad():
        got, want = causal_attention(q, k, v, starts=starts), plain(q, k, v, starts)
    torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-12)


@pytest.mark.usefixtures("small_blocks")
def test_blocks_survive_scores_far_apart() -> None:
    q, k, v = (tensor.detach().float() for tensor in heads(4, 4))
    q = (q * 1e3).requires_grad_()
    got = causal_attention(q, k, v)
    torch.testing.assert_close(got, plain(q, k, v, None), atol=1e-3, rtol=1e-3)
    (slope,) = torch.autograd.grad(got.sum(), q)
    assert slope.isfinite().all()


@shapes
@documents
@pytest.mark.usefixtures("small_blocks")
def test_dropped_weights_give_the_gradients_of_the_plain_form(shape, starts, monkeypatch) -> None:
    masks: list[Tensor] = []
    p = round(0.3 * 2**16) / 2**16

    def recorded(size: torch.Size, p: float) -> Tensor:
        masks.append(kept(size, p))
        return masks[-1]

    monkeypatch.setattr(attention, "kept", recorded)
    q, k, v = heads(*shape)
    got = causal_attention(q, k, v, starts=starts, dropout=0.3)
    factors = torch.zeros(3, shape[0], 13, 13, dtype=q.dtype)
    for start, mask in zip((0, 5, 10), masks, strict=True):  # (B*K, n*N/K, S) of n queries
        stop = min(start + 5, 13)
        rows = mask.unflatten(1, (stop - start, -1)).transpose(1, 2).unflatten(0, (3, -1))
        factors[:, :, start:stop, stop - mask.shape[2] : stop] = rows.flatten(1, 2)
    want = plain(q, k, v, starts, factors / (1 - p))
    torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-12)
    seed = torch.randn(got.shape, generator=torch.Generator().manual_seed(0), dtype=got.dtype)
    pairs = zip(
        torch.autograd.grad(got, (q, k, v), seed),
        torch.autograd.grad(want, (q, k, v), seed),
        strict=True,
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_weights_are_dropped_without_a_bias(device: str) -> None:
    q, k, v = (tensor.detach().float().to(device).requires_grad_() for tensor in heads(4, 2))
    torch.manual_seed(0)
    first, second = (causal_attention(q, k, v, dropout=0.5) for _ in range(2))
    assert not torch.equal(first, second)
    mean = torch.stack([causal_attention(q, k, v, dropout=0.5) for _ in range(2000)]).mean(0)
    torch.testing.assert_close(mean, plain(q, k, v, None), atol=0.2, rtol=0)


@shapes
def test_one_new_position_sees_the_whole_cache(shape) -> None:
    q, k, v = (tensor.detach() for tensor in heads(*shape))
    got = cached_attention(q[:, -1:], k.transpose(1, 2), v.transpose(1, 2), None)
    torch.testing.assert_close(got, plain(q, k, v, None)[:, -1:], atol=1e-12, rtol=1e-12)


@documents
@pytest.mark.usefixtures("small_blocks")
def test_blocks_in_bfloat16_stay_near_float32(starts) -> None:
    exact = [tensor.detach().float().requires_grad_() for tensor in heads(4, 2)]
    rough = [tensor.detach().bfloat16().requires_grad_() for tensor in exact]
    want, got = (causal_attention(*each, starts=starts) for each in (exact, rough))
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), want, atol=0.05, rtol=0.05)
    for ours, theirs in zip(
        torch.autograd.grad(got.float().square().sum(), rough),
        torch.autograd.grad(want.square().sum(), exact),
        strict=True,
    ):
        torch.testing.assert_close(ours.float(), theirs, atol=0.2, rtol=0.1)
