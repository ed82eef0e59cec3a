"""The Bradley-Terry objective."""

from __future__ import annotations

import math

import pytest
import torch
from packed_support import PAIRS, gradients, make, pairs, rows_of

from sparrowlm.objectives.reward import Reward, scores


def judge():
    made = Reward(32).double()
    torch.nn.init.normal_(made.head.weight, generator=torch.Generator().manual_seed(1))
    return made


def test_loss_against_the_closed_form_of_the_last_positions():
    model, ours = make(), judge()
    total, right = torch.zeros((), dtype=torch.float64), 0
    for row in rows_of(PAIRS):
        for pair in row:
            chosen, rejected = (
                ours.head(model(torch.from_numpy(one.ids[:-1])[None]).hidden[0, -1])[0]
                for one in pair
            )
            total = total - torch.log(chosen.exp() / (chosen.exp() + rejected.exp()))
            right += int(chosen > rejected)
    found = ours(model, pairs())
    torch.testing.assert_close(found.total, total, rtol=1e-7, atol=0)
    assert found.metrics["accuracy"].tolist() == [right, 3]
    assert ours.count(pairs()) == 3
    both = torch.nn.ModuleList([model.blocks, model.embed, ours])
    for mine, theirs in zip(gradients(found.total, both), gradients(total, both), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-10)


def test_scores_stand_in_the_order_of_segments():
    hidden = torch.arange(12.0).view(2, 6, 1)
    head = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(head.weight)
    segments = torch.tensor([[0, 0, 0, 1, 2, 2], [0, 0, 1, 1, -1, -1]])
    found = scores(head, hidden, segments)
    assert found.tolist() == [[2, 3, 5, 0, 0, 0], [7, 9, 0, 0, 0, 0]]
    assert scores(head, hidden, None)[:, 0].tolist() == [5, 11]


def test_a_new_head_knows_nothing():
    found = Reward(32).double()(make(), pairs())
    assert found.total.item() / 3 == pytest.approx(math.log(2))
