"""Preferences: closed forms, what a reference means, and packing."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from packed_support import PAIRS, alone, gradients, item, make, pairs, rows_of

from sparrowlm.config import PreferenceConfig
from sparrowlm.data.packing import packed_batch
from sparrowlm.objectives.preference import Preference, log_odds
from sparrowlm.objectives.sequences import target_logprobs

LOSSES = ("sigmoid", "ipo", "orpo", "simpo", "kto")
SETTINGS = {"beta": 0.3, "label_smoothing": 0.1, "margin": 0.7, "desirable_weight": 1.5}


def closed_form(loss, c, r, cr, rr, beta=0.3, s=0.1, margin=0.7):
    """A pair's loss from the log-probabilities of its tokens, as the papers write it."""
    ahead = (c.sum() - cr.sum()) - (r.sum() - rr.sum())
    if loss == "sigmoid":
        return -(1 - s) * F.logsigmoid(beta * ahead) - s * F.logsigmoid(-beta * ahead)
    if loss == "ipo":
        return (ahead - 1 / (2 * beta)) ** 2
    if loss == "simpo":
        return -F.logsigmoid(beta * c.mean() - beta * r.mean() - margin)
    p, q = c.mean().exp(), r.mean().exp()
    ratio = (p / (1 - p)) / (q / (1 - q))
    return -c.mean() - beta * torch.log(torch.sigmoid(ratio.log()))


def tokens_of(model, one):
    """Log-probabilities of the answer by the policy and by the reference."""
    said = torch.from_numpy(one.columns["reference_logprob"][1:][one.mask[1:]]).double()
    return alone(model, one), said


@pytest.mark.parametrize("loss", LOSSES[:4])
def test_pairs_against_the_closed_form(loss):
    model, total, right = make(), torch.zeros((), dtype=torch.float64), 0
    for row in rows_of(PAIRS, reference_logprob=None):
        for chosen, rejected in row:
            (c, cr), (r, rr) = tokens_of(model, chosen), tokens_of(model, rejected)
            total = total + closed_form(loss, c, r, cr, rr)
            if loss in ("orpo", "simpo"):
                right += int(c.mean() > r.mean())
            else:
                right += int((c - cr).sum() > (r - rr).sum())
    ours = Preference(PreferenceConfig(loss=loss, **SETTINGS))
    batch = pairs(reference_logprob=None)
    if loss in ("orpo", "simpo"):
        batch = batch._replace(columns={})
    found = ours(model, batch)
    torch.testing.assert_close(found.total, total, rtol=1e-7, atol=0)
    for mine, theirs in zip(gradients(found.total, model), gradients(total, model), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9)
    assert ours.count(batch) == 3
    assert found.metrics["accuracy"].tolist() == [right, 3]
    margin, chosen, rejected = (
        found.metrics[name][0] for name in ("margin", "chosen_reward", "rejected_reward")
    )
    torch.testing.assert_close(margin, chosen - rejected)


@pytest.mark.parametrize("labelled", [False, True], ids=["pairs", "labels"])
def test_kto_against_the_closed_form(labelled):
    """Of pairs the first is wanted; with labels, what they say."""
    model, point = make(), 0.8
    rows = rows_of(PAIRS, reference_logprob=None)
    if labelled:
        rows = [[(one,) for bundle in row for one in bundle] for row in rows]
        rows = [
            [
                (one._replace(columns={**one.columns, "label": 0 * one.ids + float(n % 3 == 0)}),)
                for n, (one,) in enumerate(row)
            ]
            for row in rows
        ]
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        for n, one in enumerate(one for bundle in row for one in bundle):
            said, reference = tokens_of(model, one)
            ratio = (said - reference).sum()
            if n % 3 == 0 if labelled else n % 2 == 0:
                total = total + 1.5 * (1 - torch.sigmoid(0.3 * (ratio - point)))
            else:
                total = total + 1.0 * (1 - torch.sigmoid(0.3 * (point - ratio)))
    ours = Preference(PreferenceConfig(loss="kto", **SETTINGS))
    batch = packed_batch(rows, 32)
    shape = batch.tokens.shape
    columns = {**batch.columns, "reference_point": torch.full(shape, point, dtype=torch.float64)}
    found = ours(model, batch._replace(columns=columns))
    torch.testing.assert_close(found.total, total, rtol=1e-7, atol=0)
    for mine, theirs in zip(gradients(found.total, model), gradients(total, model), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-10)
    assert ours.count(batch) == 6
    assert found.metrics["loss"].tolist() == [found.total.item(), 6]


def test_reference_equal_to_policy_gives_ln_2():
    model, batch = make(), pairs()
    with torch.no_grad():
        said = target_logprobs(model, model(batch.tokens, batch.segments).hidden, batch)
    batch = batch._replace(columns={"reference_logprob": said})
    found = Preference(PreferenceConfig())(model, batch)
    assert found.total.item() / 3 == pytest.approx(math.log(2), rel=1e-15)
    assert found.metrics["margin"].tolist() == [0, 3]
    kto = Preference(PreferenceConfig(loss="kto"))(model, batch)
    assert kto.total.item() / 6 == pytest.approx(0.5, rel=1e-15)


@pytest.mark.parametrize("loss", LOSSES)
def test_packed_equals_alone(loss):
    model, ours = make(), Preference(PreferenceConfig(loss=loss, **SETTINGS))
    packed = ours(model, pairs(reference_logprob=None)).total
    apart = torch.zeros((), dtype=torch.float64)
    for row in rows_of(PAIRS, reference_logprob=None):
        for bundle in row:
            apart = apart + ours(model, packed_batch([[bundle]], 32)).total
    torch.testing.assert_close(packed, apart, rtol=1e-10, atol=0)


def test_an_answer_without_a_token_makes_no_pair():
    model, ours = make(), Preference(PreferenceConfig())
    whole, empty = item(1, 3, 4, reference_logprob=-1), item(2, 3, 4, reference_logprob=-1)
    empty = empty._replace(mask=empty.mask & False)
    batch = packed_batch([[(whole, empty)]], 32)
    assert ours.count(batch) == 0
    found = ours(model, batch)
    assert found.total == 0
    assert all((grad == 0).all() for grad in gradients(found.total, model))


@pytest.mark.parametrize("loss", ["orpo", "simpo"])
def test_no_reference_is_read_where_there_is_none(loss):
    ours = Preference(PreferenceConfig(loss=loss))
    model = make()
    assert torch.equal(
        ours(model, pairs()).total, ours(model, pairs(reference_logprob=None)).total
    )


def test_odds_of_certainty_stay_finite_with_their_gradient():
    logs = torch.tensor([0.0, -1e-9, -200.0], requires_grad=True)
    odds = log_odds(logs, torch.tensor([True, True, True]))
    assert odds.isfinite().all()
    assert torch.autograd.grad(odds.sum(), logs)[0].isfinite().all()
