"""Experts against a dense reference written out, and transformers' balance loss."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from sparrowlm.batch import Batch
from sparrowlm.config import ModelConfig, resolve_model
from sparrowlm.errors import ConfigError
from sparrowlm.model.moe import Experts, Routing, Stack, group
from sparrowlm.model.transformer import Transformer
from sparrowlm.objectives.next_token import NextToken
from sparrowlm.optim.groups import split_parameters

BASE = ModelConfig(
    vocab_size=61, d_model=16, n_layers=2, n_heads=2, d_ff=24, max_seq_len=16, n_experts=5
)


def make(config: ModelConfig = BASE, dtype: torch.dtype = torch.float64) -> Experts:
    generator = torch.Generator().manual_seed(3)
    experts = Experts(resolve_model(config)).to(dtype)
    for parameter in experts.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return experts


def draw(*shape: int, seed: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def dense(experts: Experts, x: Tensor, per_token: int, normalized: bool) -> Tensor:
    """Every expert on every token, and the chosen ones added up."""
    odds = torch.softmax(x @ experts.router.weight.T, -1)  # (B, T, E)
    least = odds.sort(-1, descending=True).values[..., per_token - 1 : per_token]
    kept = odds * (odds >= least)
    if normalized:
        kept = kept / kept.sum(-1, keepdim=True)
    up = torch.einsum("btd,efd->btef", x, experts.up.weight)
    match experts.kind:
        case "swiglu":
            inner = F.silu(torch.einsum("btd,efd->btef", x, experts.gate.weight)) * up
        case _:
            inner = up.relu().square()
    every = torch.einsum("btef,edf->bted", inner, experts.down.weight)
    return (kept[..., None] * every).sum(2)


@pytest.mark.parametrize("mlp", ["swiglu", "relu2"])
@pytest.mark.parametrize(
    ("per_token", "normalized"), [(1, False), (2, True), (2, False), (5, True)]
)
def test_values_and_gradients_against_a_dense_reference(mlp, per_token, normalized) -> None:
    config = replace(BASE, mlp=mlp, experts_per_token=per_token, norm_topk_prob=normalized)
    experts, x = make(config), draw(3, 7, 16)
    got, want = experts(x)[0], dense(experts, x, per_token, normalized)
    torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-12)
    leaves = [x, *experts.parameters()]
    weight = draw(3, 7, 16, seed=9).detach()
    ours = torch.autograd.grad((got * weight).sum(), leaves)
    theirs = torch.autograd.grad((want * weight).sum(), leaves)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


def test_an_unused_expert_has_a_gradient_of_zeros() -> None:
    experts, x = make(replace(BASE, experts_per_token=1, norm_topk_prob=False)), draw(1, 1, 16)
    _, _, chosen = experts.route(x)
    experts(x)[0].sum().backward()
    for stack in (experts.gate, experts.up, experts.down):
        assert stack.weight.grad is not None
        used = stack.weight.grad.flatten(1).abs().amax(1) > 0
        assert used.nonzero().flatten().tolist() == chosen.flatten().tolist()


def test_a_row_alone_is_the_row_among_others() -> None:
    experts, x = make(), draw(4, 9, 16)
    together, routing = experts(x)
    for row in range(4):
        alone, own = experts(x[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], atol=1e-12, rtol=1e-12)
        for mine, every in zip(own, routing, strict=True):
            torch.testing.assert_close(mine[0], every[row])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_kernel_equals_a_product_for_each_group(dtype: torch.dtype) -> None:
    """`F.grouped_mm`, which CUDA takes in bfloat16; here its CPU version, forward and backward."""
    stack = Stack(5, 24, 16).to(dtype)
    torch.nn.init.normal_(stack.weight)
    chosen = torch.tensor([[0, 3], [3, 1], [0, 1], [3, 0]])  # nothing for experts 2 and 4
    apart, together = (group(chosen, 5, one_kernel=one) for one in (False, True))
    assert apart.sizes == [3, 2, 0, 3, 0]
    x = draw(8, 16).detach().to(dtype).requires_grad_()
    weight = draw(8, 24).detach().to(dtype)
    results = [stack(x, groups) for groups in (apart, together)]
    slopes = [torch.autograd.grad(y, [x, stack.weight], weight) for y in results]
    torch.testing.assert_close(*results)
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("per_token", [1, 2])
def test_balance_of_a_row_against_transformers(per_token: int) -> None:
    experts, x = (
        make(replace(BASE, experts_per_token=per_token, balance_weight=0.25)),
        draw(3, 9, 16),
    )
    real = torch.arange(9) < torch.tensor([[9], [6], [1]])
    logits = x @ experts.router.weight.T
    for mask in (None, real):
        routing = experts(x, mask)[1]
        for row in range(3):
            part = None if mask is None else mask[row : row + 1].long()
            want = load_balancing_loss_func((logits[row],), 5, per_token, part)
            # Theirs counts in float32.
            torch.testing.assert_close(routing.balance[row].float(), want.float())
        torch.testing.assert_close(routing.penalty, 0.25 * routing.balance)


def test_shares_of_the_busiest_and_the_idlest_expert() -> None:
    experts = make(replace(BASE, experts_per_token=1))
    with torch.no_grad():
        experts.router.weight.zero_()
        experts.router.weight[:4, :4] = 9 * torch.eye(4)
    x = torch.zeros(2, 4, 16, dtype=torch.float64)
    x[0, range(4), range(4)] = 1  # a token for each of the first four experts
    x[1, :, 2] = 1  # all for the third
    routing = experts(x)[1]
    assert routing.largest.tolist() == [0.25, 1.0]
    assert routing.smallest.tolist() == [0.0, 0.0]
    assert routing.balance[0] < routing.balance[1]


def test_less_penalty_is_more_even() -> None:
    """From a router that sends four of five tokens to the same expert."""
    experts = make(replace(BASE, experts_per_token=1, balance_weight=1.0))
    x = draw(1, 200, 16).detach()
    x[..., 0] = 2.0
    with torch.no_grad():
        experts.router.weight.mul_(0.2)[0, 0] += 1.0
    before = experts(x)[1]
    optimizer = torch.optim.SGD(experts.router.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        experts(x)[1].penalty.sum().backward()
        optimizer.step()
    after = experts(x)[1]
    assert before.largest > 0.8
    assert after.largest < 0.3
    assert 1 <= after.balance < 1.05


def test_the_loss_is_free_of_the_penalty_and_the_total_is_not() -> None:
    model = Transformer(resolve_model(replace(BASE, balance_weight=0.5))).double()
    model.init_weights(seed=2)
    tokens = torch.randint(0, 61, (3, 13), generator=torch.Generator().manual_seed(1))
    mask = torch.rand(3, 12, generator=torch.Generator().manual_seed(2)) < 0.6
    loss = NextToken()(model, Batch(tokens[:, :-1], tokens[:, 1:], mask, None, {}))
    router = model(tokens[:, :-1]).router
    assert isinstance(router, Routing)
    penalty = (mask.sum(1) * 0.5 * router.balance).sum()
    torch.testing.assert_close(loss.total, loss.metrics["loss"][0] + penalty)
    for name in ("balance", "largest_expert", "smallest_expert"):
        assert loss.metrics[name][1] == mask.sum()


def test_expert_weights_are_matrices_to_the_optimizer() -> None:
    groups = split_parameters(Transformer(resolve_model(BASE)))
    held = [name for name in groups["matrices"] if ".mlp." in name]
    assert len(held) == 2 * 4  # router, gate, up and down of two blocks


def test_impossible_settings_are_named() -> None:
    with pytest.raises(ConfigError, match=r"experts_per_token 6.*n_experts 5"):
        resolve_model(replace(BASE, experts_per_token=6))
    with pytest.raises(ConfigError, match=r"model\.bias"):
        resolve_model(replace(BASE, bias=True))
    with pytest.raises(ConfigError, match=r"n_experts is -1"):
        resolve_model(replace(BASE, n_experts=-1))
