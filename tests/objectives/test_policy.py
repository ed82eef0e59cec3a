"""Policy gradients: closed forms, ratios, groups, and advantages by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from packed_support import alone, gradients, make, rows_of

from sparrowlm.config import PolicyConfig
from sparrowlm.data.packing import packed_batch
from sparrowlm.objectives.policy import Policy, gae, group_advantages, k3
from sparrowlm.optim.groups import split_parameters

SIZES = [[[(3, 4)], [(5, 2)]], [[(2, 9)]], []]
KINDS = ("grpo", "dr_grpo", "cispo", "ppo")


def batch_of(**columns):
    return packed_batch(rows_of(SIZES, **columns), 24)


def items(**columns):
    return [bundle[0] for row in rows_of(SIZES, **columns) for bundle in row]


def objective(kind, **settings):
    made = Policy(kind, PolicyConfig(**settings), max_tokens=16, width=32).double()
    if made.head is not None:
        generator = torch.Generator().manual_seed(1)
        torch.nn.init.normal_(made.head.weight, std=0.1, generator=generator)
    return made


def column(one, name):
    return torch.from_numpy(one.columns[name][1:][one.mask[1:]]).double()


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "cispo"])
def test_loss_against_the_closed_form(kind):
    columns = {"advantage": None, "old_logprob": -4.0, "reference_logprob": -4.2}
    model, batch = make(), batch_of(**columns)
    ours = objective(kind, clip=0.1, clip_high=0.3, kl_weight=0.05)
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for one in items(**columns):
        logs, advantage = alone(model, one), column(one, "advantage")
        ratio = (logs - column(one, "old_logprob")).exp()
        held = ratio.clamp(0.9, 1.3)
        each = -torch.minimum(ratio * advantage, held * advantage)
        if kind == "cispo":
            each = -held.detach() * advantage * logs
        apart = column(one, "reference_logprob") - logs
        each = each + 0.05 * (apart.exp() - apart - 1)
        total = total + (each.mean() if kind == "grpo" else each.sum())
        tokens += len(logs)
    loss = ours(model, batch)
    torch.testing.assert_close(loss.total, total, rtol=1e-7, atol=0)
    assert ours.count(batch) == {"grpo": 3, "dr_grpo": 3 * 16, "cispo": tokens}[kind]
    for mine, theirs in zip(gradients(loss.total, model), gradients(total, model), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-10)
    assert loss.metrics["length"].tolist() == [15, 3]
    clipped, counted = loss.metrics["clipped"].tolist()
    assert 0 < clipped <= counted == 15


def test_ppo_against_the_closed_form():
    columns = {"advantage": None, "old_logprob": -4.0, "return": None, "old_value": None}
    model, batch = make(), batch_of(**columns)
    ours = objective("ppo", entropy_weight=0.01, value_weight=0.5, value_clip=0.2)
    assert ours.head is not None
    total = torch.zeros((), dtype=torch.float64)
    for one in items(**columns):
        logs, advantage = alone(model, one), column(one, "advantage")
        ratio = (logs - column(one, "old_logprob")).exp()
        total = total - torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).sum()
        hidden = model(torch.from_numpy(one.ids[:-1])[None]).hidden[0][one.mask[1:]]
        value, wanted, old = ours.head(hidden)[:, 0], column(one, "return"), column(one, "old_value")
        held = torch.minimum(torch.maximum(value, old - 0.2), old + 0.2)
        errors = torch.stack(((value - wanted) ** 2, (held - wanted) ** 2)).amax(0) / 2
        choices = torch.distributions.Categorical(logits=model.logits(hidden))
        total = total + 0.5 * errors.sum() - 0.01 * choices.entropy().sum()
    loss = ours(model, batch)
    torch.testing.assert_close(loss.total, total, rtol=1e-7, atol=0)
    both = torch.nn.ModuleList([model, ours])
    for mine, theirs in zip(gradients(loss.total, both), gradients(total, both), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_ratio_is_exactly_one(kind):
    """With old log-probabilities from the training forward, in float32 as columns are."""
    model = make().float()
    batch = batch_of(advantage=None, **{"return": None, "old_value": 0.0})
    ours = objective(kind).float()
    old, value = ours.judged(model, batch)
    assert (value is not None) == (kind == "ppo")
    assert not old.requires_grad
    for columns in (batch.columns, {**batch.columns, "old_logprob": old}):
        loss = ours(model, batch._replace(columns=columns))
        assert loss.metrics["ratio"].tolist() == [15, 15]
        assert loss.metrics["clipped"].tolist() == [0, 15]


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "cispo"])
def test_a_group_with_equal_rewards_gives_no_gradient(kind):
    advantages = group_advantages(torch.full((1, 3), 0.1), kind)
    assert (advantages == 0).all()
    model, batch = make(), batch_of(advantage=0.0, old_logprob=-4.0)
    loss = objective(kind)(model, batch)
    assert all((grad == 0).all() for grad in gradients(loss.total, model))
    moved = objective(kind)(model, batch_of(advantage=1.0, old_logprob=-4.0))
    assert any((grad != 0).any() for grad in gradients(moved.total, model))


def test_clipping_ends_the_gradient_of_what_moved_far_enough():
    model = make()
    far = batch_of(advantage=1.0, old_logprob=-30.0)  # every ratio is far above 1
    assert all((grad == 0).all() for grad in gradients(objective("grpo")(model, far).total, model))
    assert any(
        (grad != 0).any() for grad in gradients(objective("cispo")(model, far).total, model)
    )


def test_k3_is_never_negative_and_0_where_nothing_moved():
    draw = np.random.default_rng(0)
    logs = torch.from_numpy(-draw.exponential(3, 100_000)).float()
    near = logs + torch.from_numpy(draw.standard_normal(100_000) * 1e-4).float()
    far = torch.from_numpy(-draw.exponential(3, 100_000)).float()
    assert (k3(logs, near) >= 0).all()
    assert (k3(logs, far) >= 0).all()
    assert (k3(logs, logs) == 0).all()


def test_k3_is_the_divergence_on_average():
    p, q = (torch.randn(7, generator=torch.Generator().manual_seed(s)).double() for s in (1, 2))
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    torch.testing.assert_close((p.exp() * k3(p, q)).sum(), (p.exp() * (p - q)).sum())


def test_group_advantages_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]], dtype=torch.float64)
    spread = (0.75**2 + 3 * 0.25**2) ** 0.5 / 2
    wanted = torch.tensor([[0.75, -0.25, -0.25, -0.25], [0.0] * 4], dtype=torch.float64)
    torch.testing.assert_close(group_advantages(rewards, "dr_grpo"), wanted)
    torch.testing.assert_close(group_advantages(rewards, "grpo"), wanted / spread, rtol=1e-6, atol=0)


def test_gae_against_a_trace_by_hand():
    """Three tokens, a reward at the end, gamma 0.9 and lambda 0.8: surprises are
    0.9 x 0.4 - 0.5 = -0.14, 0.9 x 0.6 - 0.4 = 0.14, and 1 - 0.6 = 0.4; each advantage is its
    surprise and 0.72 times the next one: 0.4, then 0.428, then 0.16816."""
    rewards = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    values = torch.tensor([[0.5, 0.4, 0.6], [0.25, 0.0, 0.0]], dtype=torch.float64)
    advantages, returns = gae(rewards, values, 0.9, 0.8)
    wanted = torch.tensor([[0.16816, 0.428, 0.4], [0.75, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(advantages, wanted)
    torch.testing.assert_close(returns, wanted + values)


def test_gae_with_lambda_1_is_the_discounted_rest_less_the_value():
    rewards = torch.tensor([1.0, 2.0, 4.0])
    values = torch.tensor([0.3, 0.2, 0.1])
    advantages, returns = gae(rewards, values, 0.5, 1.0)
    torch.testing.assert_close(returns, torch.tensor([3.0, 4.0, 4.0]))
    torch.testing.assert_close(advantages, returns - values)


def test_the_value_head_says_0_at_first_and_is_grouped_as_a_head():
    made = Policy("ppo", PolicyConfig(), width=32)
    groups = split_parameters(torch.nn.ModuleDict({"model": make(), "objective": made}))
    assert "objective.head.weight" in groups["tables"]
    assert "objective.head.bias" in groups["vectors"]
    assert made.head is not None
    assert (made.head(torch.randn(5, 32)) == 0).all()
    assert not list(Policy("grpo", PolicyConfig()).parameters())
