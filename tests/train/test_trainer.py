"""The laws of the loop."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from sparrowlm.batch import Batch, Loss
from sparrowlm.checkpoint import RunFolder
from sparrowlm.errors import EnvironmentFault
from sparrowlm.objectives.next_token import NextToken
from sparrowlm.train.build import build, resolve_recipe
from sparrowlm.train.sitting import snapshot
from sparrowlm.train.trainer import is_out_of_memory
from support import EXPERTS, byte_dataset, cpu, tiny_recipe, with_model


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return byte_dataset(tmp_path_factory.mktemp("bytes"))


def trained(recipe, dataset, precision="float32", checkpoint=None):
    """Run a recipe to its end; returns its parts and rows."""
    runtime = cpu(precision)
    parts = build(resolve_recipe(recipe, 256, runtime), dataset, runtime, checkpoint)
    return parts, list(parts.trainer.run())


@pytest.mark.parametrize("shape", [{}, EXPERTS], ids=["dense", "experts"])
@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
def test_accumulation_does_not_change_the_run(dataset, precision, tolerance, shape):
    recipe = with_model(tiny_recipe(), **shape)
    recipe = replace(recipe, optim=replace(recipe.optim, lr=1e-3))
    runs = [
        trained(
            replace(recipe, train=replace(recipe.train, micro_batch_size=size)), dataset, precision
        )
        for size in (8, 3, 1)
    ]
    (first, first_rows), *others = runs
    for parts, rows in others:
        for one, other in zip(first.model.parameters(), parts.model.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=tolerance)
        for row, other in zip(first_rows, rows, strict=True):
            assert row.metrics.keys() == other.metrics.keys()
            for name, pair in row.metrics.items():
                assert pair == pytest.approx(other.metrics[name], rel=1e-5)


def test_loss_falls(dataset):
    _, rows = trained(tiny_recipe(steps=60), dataset)
    first, last = (row.metrics["loss"][0] / row.metrics["loss"][1] for row in (rows[0], rows[-1]))
    assert first == pytest.approx(math.log(256), abs=0.3)
    assert last < first - 1


@pytest.mark.parametrize(
    "shape",
    [{}, pytest.param(EXPERTS, marks=pytest.mark.slow)],
    ids=["dense", "experts"],
)
def test_resume_equals_no_interruption_at_every_step(dataset, tmp_path, shape):
    """With Muon for the matrices and AdamW for the rest, so both optimizers' buffers count."""
    recipe = tiny_recipe(steps=30, micro_batch_size=4, optimizer="muon")
    recipe = with_model(recipe, dropout=0.1, **shape)
    runtime = cpu()
    recipe = resolve_recipe(recipe, 256, runtime)
    straight = build(recipe, dataset, runtime)
    run = RunFolder(tmp_path / "run")
    run.create()
    rows = []
    for row in straight.trainer.run():
        rows.append(row)
        run.save(snapshot(straight), keep_last=30)
    expected = snapshot(straight)
    for k in run.steps():
        resumed = build(recipe, dataset, runtime, run.load(k))
        tail = list(resumed.trainer.run())
        assert [(r.step, r.metrics, r.grad_norm, r.lr_scale, r.tokens) for r in tail] == [
            (r.step, r.metrics, r.grad_norm, r.lr_scale, r.tokens) for r in rows[k:]
        ]
        found = snapshot(resumed)
        for mine, theirs in ((found.model, expected.model), (found.trainer, expected.trainer)):
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[name], theirs[name]) for name in mine)


class Poisoned(NextToken):
    """Gives NaN at chosen forward passes."""

    def __init__(self, bad: set[int]) -> None:
        super().__init__()
        self.bad, self.calls = bad, 0

    def forward(self, model: torch.nn.Module, batch: Batch) -> Loss:
        self.calls += 1
        loss = super().forward(model, batch)
        if self.calls in self.bad:
            return Loss(loss.total * math.nan, loss.metrics)
        return loss


def poisoned(dataset, bad, steps=20):
    """A trainer whose objective fails at the forward passes in `bad`."""
    runtime = cpu()
    parts = build(resolve_recipe(tiny_recipe(steps), 256, runtime), dataset, runtime)
    parts.trainer.step_module.objective = Poisoned(bad)
    return parts


def test_a_step_that_is_not_finite_is_not_applied_and_is_counted(dataset):
    parts = poisoned(dataset, {3})
    rows = parts.trainer.run()
    next(rows), next(rows)
    before = {name: tensor.clone() for name, tensor in snapshot(parts).model.items()}
    row = next(rows)
    assert not row.applied
    assert "step 3" in row.events[0]
    assert all(torch.equal(before[name], tensor) for name, tensor in snapshot(parts).model.items())
    assert parts.trainer.state.skipped == 1
    assert next(rows).applied
    assert parts.trainer.state.skipped_in_a_row == 0


def test_a_run_of_bad_steps_ends_the_training(dataset):
    parts = poisoned(dataset, set(range(5, 100)))
    with pytest.raises(EnvironmentFault, match="10 steps in a row"):
        list(parts.trainer.run())
    assert parts.trainer.state.step == 14


class Greedy(NextToken):
    """Needs more memory than there is for more than `limit` rows."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, model: torch.nn.Module, batch: Batch) -> Loss:
        if batch.tokens.size(0) > self.limit:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(model, batch)


def test_out_of_memory_halves_micro_batches_and_keeps_the_batch(dataset):
    runtime = cpu("float64")
    recipe = resolve_recipe(tiny_recipe(steps=6), 256, runtime)
    parts = build(recipe, dataset, runtime)
    parts.trainer.step_module.objective = Greedy(3)
    rows = list(parts.trainer.run())
    assert parts.trainer.state.micro_batch_size == 2
    assert [event for row in rows for event in row.events] == [
        "out of memory: micro_batch_size is now 4; batch_tokens stays",
        "out of memory: micro_batch_size is now 2; batch_tokens stays",
    ]
    plain = build(recipe, dataset, runtime)
    list(plain.trainer.run())
    for one, other in zip(parts.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_out_of_memory_at_one_row_names_the_setting_that_helps(dataset):
    runtime = cpu()
    parts = build(resolve_recipe(tiny_recipe(), 256, runtime), dataset, runtime)
    parts.trainer.step_module.objective = Greedy(0)
    with pytest.raises(EnvironmentFault, match="activation_checkpointing"):
        next(parts.trainer.run())


def test_out_of_memory_on_one_of_several_ranks_asks_none_of_them(dataset):
    """A rollout's batch, or that of kto, is made by all ranks together."""
    parts = build(resolve_recipe(tiny_recipe(), 256, cpu()), dataset, cpu())
    parts.trainer.runtime, parts.trainer.stream = replace(cpu(), world_size=2), None
    with pytest.raises(EnvironmentFault, match=r"set train\.micro_batch_size = 4"):
        parts.trainer._halve(torch.OutOfMemoryError())


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 B.", True),
        ("data. DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.", True),
        ("MPS backend out of memory (MPS allocated: 5.05 GB, max allowed: 9.07 GB).", True),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_every_device_says_in_its_own_words_that_memory_ran_out(words, meant):
    assert is_out_of_memory(RuntimeError(words)) == meant


def test_clipping_equals_torch(dataset):
    runtime = cpu("float64")
    recipe = resolve_recipe(tiny_recipe(), 256, runtime)
    parts = build(replace(recipe, optim=replace(recipe.optim, clip_norm=0.01)), dataset, runtime)
    trainer = parts.trainer
    batch = trainer.stream.batch(0)
    loss = parts.objective(parts.model, batch)
    (loss.total / parts.objective.count(batch)).backward()
    ours = trainer._clip()
    clipped = [p.grad.clone() for p in parts.model.parameters()]
    parts.model.zero_grad()
    loss = parts.objective(parts.model, batch)
    (loss.total / parts.objective.count(batch)).backward()
    theirs = torch.nn.utils.clip_grad_norm_(parts.model.parameters(), 0.01)
    assert ours == pytest.approx(theirs.item(), rel=1e-12)
    for mine, parameter in zip(clipped, parts.model.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-9, atol=0)


def test_minutes_become_steps_and_the_decision_is_kept(dataset):
    recipe = tiny_recipe()
    recipe = replace(
        recipe,
        train=replace(recipe.train, length="1.5 seconds"),
        optim=replace(recipe.optim, cooldown=0.5),
    )
    runtime = cpu()
    parts = build(resolve_recipe(recipe, 256, runtime), dataset, runtime)
    rows = list(parts.trainer.run())
    state = parts.trainer.state
    assert state.step == state.total_steps == len(rows)
    assert rows[-1].lr_scale == pytest.approx(parts.trainer.schedule.floor)
    cooled = [row for row in rows if row.step > state.total_steps - state.cooldown_steps]
    assert 0.7 < cooled[0].seconds < 1.2
    assert 1.2 < rows[-1].seconds < 2.2
    again = build(resolve_recipe(recipe, 256, runtime), dataset, runtime, snapshot(parts))
    assert list(again.trainer.run()) == []


def test_float16_scale_halves_on_overflow_and_doubles_after_patience(dataset):
    from sparrowlm.checkpoint import State
    from sparrowlm.train.trainer import LOSS_SCALE_PATIENCE, _next_loss_scale

    state = State(loss_scale=1024.0, loss_scale_age=7)
    assert _next_loss_scale(state, bad=True) == (512.0, 0)
    assert _next_loss_scale(state, bad=False) == (1024.0, 8)
    ripe = replace(state, loss_scale_age=LOSS_SCALE_PATIENCE - 1)
    assert _next_loss_scale(ripe, bad=False) == (2048.0, 0)


def test_a_loss_scale_does_not_change_the_run(dataset):
    runtime = cpu("float64")
    recipe = resolve_recipe(tiny_recipe(steps=5), 256, runtime)
    plain, scaled = (build(recipe, dataset, runtime) for _ in range(2))
    scaled.trainer.state = replace(scaled.trainer.state, loss_scale=2.0**16)
    for one, other in zip(plain.trainer.run(), scaled.trainer.run(), strict=True):
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-12)
    for one, other in zip(plain.model.parameters(), scaled.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
