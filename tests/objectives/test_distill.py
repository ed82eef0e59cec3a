"""Distillation: divergences, their gradients, and a teacher that stays as it is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from packed_support import gradients, make, pairs

from sparrowlm.config import DistillConfig
from sparrowlm.model import head
from sparrowlm.objectives.distill import Distill
from sparrowlm.objectives.next_token import NextToken

KINDS = ("forward_kl", "reverse_kl")


def with_config(teacher, **settings):
    return Distill(teacher.requires_grad_(False), DistillConfig(**settings))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 0.5), (2.5, 1.0), (2.0, 0.3)])
def test_loss_and_gradients_against_torch(kind, temperature, weight, monkeypatch):
    """In chunks of 16 rows, with a teacher of another width, an untied head and a bias."""
    monkeypatch.setattr(head, "CHUNK_BYTES", 1)
    model = make(tie_embeddings=False, head_bias=True)
    teacher, batch = make(seed=8, d_model=48), pairs()
    ours = with_config(teacher, loss=kind, temperature=temperature, weight=weight)
    logits = model.logits(model(batch.tokens, batch.segments).hidden)[batch.mask]
    theirs = teacher.logits(teacher(batch.tokens, batch.segments).hidden)[batch.mask]
    p, q = (x.div(temperature).log_softmax(-1) for x in (theirs, logits))
    if kind == "reverse_kl":
        p, q = q, p
    divergence = F.kl_div(q, p, reduction="sum", log_target=True)
    nats = F.cross_entropy(logits, batch.targets[batch.mask], reduction="sum")
    want = weight * temperature**2 * divergence + (1 - weight) * nats
    found = ours(model, batch)
    torch.testing.assert_close(found.total, want, rtol=1e-9, atol=0)
    for mine, other in zip(gradients(found.total, model), gradients(want, model), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-7, atol=1e-9)
    count = batch.mask.sum().item()
    assert found.metrics["cross_entropy"].tolist() == pytest.approx([nats.item(), count])
    assert found.metrics["divergence"].tolist() == pytest.approx([divergence.item(), count])


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_equal_to_the_student_gives_no_loss_and_no_gradient(kind):
    model = make()
    found = with_config(make(), loss=kind, temperature=2.0, weight=1.0)(model, pairs())
    assert abs(found.total.item()) < 1e-12
    assert all(grad.abs().max() < 1e-12 for grad in gradients(found.total, model))
    other = with_config(make(seed=9), loss=kind, temperature=2.0, weight=1.0)(model, pairs())
    assert other.total.item() > 1e-3


def test_without_weight_it_is_the_next_token():
    model, batch = make(), pairs()
    found = with_config(make(seed=9), weight=0.0)(model, batch)
    want = NextToken()(model, batch)
    torch.testing.assert_close(found.total, want.total, rtol=1e-12, atol=0)
    for mine, other in zip(
        gradients(found.total, model), gradients(want.total, model), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


def test_the_teacher_is_neither_trained_nor_saved():
    teacher = make(seed=9)
    ours = with_config(teacher)
    assert ours.teacher is teacher
    assert not list(ours.parameters())
    assert not ours.state_dict()
    model = make()
    ours(model, pairs()).total.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_no_gradient_is_kept_where_none_is_wanted():
    with torch.no_grad():
        found = with_config(make(seed=9))(make(), pairs())
    assert not found.total.requires_grad
