"""The chunked head against torch's cross-entropy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparrowlm.model import head
from sparrowlm.model.head import over_vocab, summed_nll

ROWS, WIDTH, VOCAB = 50, 8, 30


@pytest.fixture(autouse=True)
def chunks_of_17(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three chunks, the last one short."""
    monkeypatch.setattr(head, "CHUNK_BYTES", 4 * VOCAB * 17)


def case(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, weight, targets, mask."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(ROWS, WIDTH, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(VOCAB, WIDTH, generator=generator, dtype=dtype).requires_grad_()
    targets = torch.randint(0, VOCAB, (ROWS,), generator=generator)
    return hidden, weight, targets, torch.rand(ROWS, generator=generator) > 0.3


def nats(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="none")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_loss_and_gradients_against_cross_entropy(dtype, tolerance) -> None:
    hidden, weight, targets, mask = case(dtype)
    want = F.cross_entropy((hidden @ weight.t())[mask], targets[mask], reduction="sum")
    summed = summed_nll(hidden, weight, targets, mask)
    each = over_vocab(hidden, weight, targets, nats)[mask].sum()
    for got in (summed, each):
        torch.testing.assert_close(got, want, atol=0, rtol=tolerance)
        pairs = zip(
            torch.autograd.grad(got * 0.37, (hidden, weight)),
            torch.autograd.grad(want * 0.37, (hidden, weight), retain_graph=True),
            strict=True,
        )
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


def test_a_bias_against_cross_entropy_with_its_gradient() -> None:
    hidden, weight, targets, mask = case(torch.float64)
    bias = torch.randn(VOCAB, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    inputs = (hidden, weight, bias.requires_grad_())
    want = F.cross_entropy((hidden @ weight.t() + bias)[mask], targets[mask], reduction="sum")
    wanted = torch.autograd.grad(want * 0.37, inputs, retain_graph=True)
    summed = summed_nll(hidden, weight, targets, mask, bias)
    each = over_vocab(hidden, weight, targets, nats, bias)[mask].sum()
    for got in (summed, each):
        torch.testing.assert_close(got, want, atol=0, rtol=1e-12)
        for ours, theirs in zip(torch.autograd.grad(got * 0.37, inputs), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
    alone = summed_nll(hidden.detach(), weight.detach(), targets, mask, bias)
    torch.testing.assert_close(torch.autograd.grad(alone * 0.37, bias)[0], wanted[2])


def test_a_bias_under_autocast_keeps_a_float32_gradient() -> None:
    hidden, weight, targets, mask = case(torch.float32)
    bias = torch.linspace(-1, 1, VOCAB).requires_grad_()
    exact = summed_nll(hidden, weight, targets, mask, bias)
    with torch.autocast("cpu", torch.bfloat16):
        rough = summed_nll(hidden, weight, targets, mask, bias)
    torch.testing.assert_close(rough, exact, atol=0, rtol=1e-2)
    (slope,) = torch.autograd.grad(rough, bias)
    assert slope.dtype == torch.float32
    torch.testing.assert_close(slope, torch.autograd.grad(exact, bias)[0], atol=0.1, rtol=0.1)


def test_summed_nll_passes_gradcheck() -> None:
    hidden, weight, targets, mask = case(torch.float64)
    assert torch.autograd.gradcheck(lambda h, w: summed_nll(h, w, targets, mask), (hidden, weight))


def test_a_tied_table_sums_both_gradients() -> None:
    hidden, weight, targets, mask = case(torch.float64)
    del hidden
    ids = torch.arange(ROWS) % VOCAB
    got = summed_nll(F.embedding(ids, weight), weight, targets, mask)
    want = F.cross_entropy(
        (F.embedding(ids, weight) @ weight.t())[mask], targets[mask], reduction="sum"
    )
    (ours,) = torch.autograd.grad(got, weight)
    (theirs,) = torch.autograd.grad(want, weight)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_masked_targets_may_be_anything() -> None:
    hidden, weight, targets, mask = case(torch.float64)
    odd = targets.where(mask, -100)
    assert torch.equal(
        summed_nll(hidden, weight, odd, mask), summed_nll(hidden, weight, targets, mask)
    )


def test_nothing_counts_is_zero_with_zero_gradients() -> None:
    hidden, weight, targets, mask = case(torch.float64)
    total = summed_nll(hidden, weight, targets, torch.zeros_like(mask))
    total.backward()
    assert total == 0
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_without_gradients_the_same_loss_and_no_graph() -> None:
    hidden, weight, targets, mask = case(torch.float64)
    with torch.no_grad():
        quiet = summed_nll(hidden, weight, targets, mask)
    assert quiet.grad_fn is None
    assert torch.equal(quiet, summed_nll(hidden, weight, targets, mask))


def test_only_the_wanted_gradient_is_taken() -> None:
    hidden, weight, targets, mask = case(torch.float64)
    both = torch.autograd.grad(summed_nll(hidden, weight, targets, mask), (hidden, weight))
    frozen = torch.autograd.grad(summed_nll(hidden, weight.detach(), targets, mask), hidden)
    assert torch.equal(frozen[0], both[0])


def test_autocast_multiplies_in_bfloat16_and_sums_in_float32() -> None:
    hidden, weight, targets, mask = case(torch.float32)
    exact = summed_nll(hidden, weight, targets, mask)
    with torch.autocast("cpu", torch.bfloat16):
        rough = summed_nll(hidden, weight, targets, mask)
    assert rough.dtype == torch.float32
    assert rough != exact
    torch.testing.assert_close(rough, exact, atol=0, rtol=1e-2)
    for slope in torch.autograd.grad(rough, (hidden, weight)):
        assert slope.dtype == torch.float32


def test_probabilities_of_almost_zero_stay_finite() -> None:
    hidden = torch.tensor([[1000.0]]).requires_grad_()
    weight = torch.tensor([[1.0], [-1.0]])
    mask = torch.ones(1, dtype=torch.bool)
    assert summed_nll(hidden, weight, torch.tensor([1]), mask).item() == 2000


def test_over_vocab_differentiates_any_function() -> None:
    hidden, weight, targets, _ = case(torch.float64)

    def entropy(logits: Tensor, _: Tensor) -> Tensor:
        return torch.distributions.Categorical(logits=logits).entropy()

    got, want = over_vocab(hidden, weight, targets, entropy), entropy(hidden @ weight.t(), targets)
    torch.testing.assert_close(got, want)
    pairs = zip(
        torch.autograd.grad(got.sum(), (hidden, weight)),
        torch.autograd.grad(want.sum(), (hidden, weight)),
        strict=True,
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs)


def test_no_tensor_holds_the_logits_of_all_rows() -> None:
    hidden, weight, targets, mask = case(torch.float32)
    sizes: list[int] = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                sizes.append(result.numel())
            return result

    with Watch():
        summed_nll(hidden, weight, targets, mask).backward()
    assert max(sizes) < ROWS * VOCAB
    assert head.chunk_rows(VOCAB) == 17
