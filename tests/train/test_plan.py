"""The plan's arithmetic against what is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sparrowlm import files
from sparrowlm.checkpoint import RunFolder
from sparrowlm.config import DistillConfig, LoraConfig, dump_recipe, load_recipe
from sparrowlm.model.count import count_parameters, training_memory
from sparrowlm.train.build import build, resolve_recipe
from sparrowlm.train.plan import advice, fitting_rows, plan_of, settings_that_fit, step_memory
from sparrowlm.train.reference import reference_of
from sparrowlm.train.sitting import snapshot
from support import byte_dataset, cpu, tiny_recipe, with_model


def test_minimind_26m_has_26878464_parameters():
    recipe = resolve_recipe(load_recipe_named("minimind-26m"), 6400, cpu())
    plan = plan_of(recipe, cpu(), rate=2e11, total_steps=100)
    assert plan.parameters.total == 26_878_464


def load_recipe_named(name):
    from sparrowlm.config import find_recipe

    return load_recipe(find_recipe(name))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_checkpoint_size_is_what_is_written(tmp_path, optimizer):
    runtime = cpu()
    recipe = tiny_recipe(steps=1, optimizer=optimizer)
    recipe = replace(recipe, model=replace(recipe.model, d_model=128, d_ff=512))
    recipe = resolve_recipe(recipe, 256, runtime)
    parts = build(recipe, byte_dataset(tmp_path / "data"), runtime)
    list(parts.trainer.run())
    run = RunFolder(tmp_path / "run")
    run.create()
    run.save(snapshot(parts), keep_last=1)
    written = sum(path.stat().st_size for path in run.folder(1).glob("*.safetensors"))
    plan = plan_of(recipe, runtime, rate=1e11, total_steps=1)
    assert plan.checkpoint_bytes == pytest.approx(written, rel=0.05)


def test_weights_gradients_and_optimizer_are_counted_exactly(tmp_path):
    runtime = cpu()
    recipe = resolve_recipe(tiny_recipe(steps=1), 256, runtime)
    parts = build(recipe, byte_dataset(tmp_path / "data"), runtime)
    list(parts.trainer.run())
    states = parts.trainer.optimizers.state_tensors().values()
    held = sum(tensor.numel() * 4 for tensor in states if tensor.ndim)
    memory = training_memory(recipe.model, 8, 16, optimizer="adamw")
    assert memory.optimizer == held
    assert memory.weights == sum(p.numel() * 4 for p in parts.model.parameters())


def test_rows_are_halved_until_they_fit_and_advice_names_what_does():
    runtime = cpu()
    recipe = load_recipe_named("minimind-26m")
    recipe = resolve_recipe(recipe, 6400, runtime)
    plan = plan_of(recipe, runtime, rate=1e11, total_steps=1, available=10**9)
    assert not plan.fits
    rows = fitting_rows(recipe, runtime, 10**9)
    assert 1 <= rows < 16
    assert advice(plan, runtime) == f"train.micro_batch_size = {rows} fits"
    small = plan_of(recipe, runtime, rate=1e11, total_steps=1, available=560 * 10**6)
    assert "activation_checkpointing" in advice(small, runtime)
    none = plan_of(recipe, runtime, rate=1e11, total_steps=1, available=10**8)
    assert "smaller" in advice(none, runtime)


def test_time_is_work_over_half_the_ceiling():
    recipe = resolve_recipe(tiny_recipe(), 256, cpu())
    plan = plan_of(recipe, cpu(), rate=1e9, total_steps=10)
    assert plan.tokens == 1280
    assert plan.seconds == pytest.approx(1280 * plan.flops_per_token / 5e8)


def test_precision_is_part_of_the_memory():
    recipe = resolve_recipe(tiny_recipe(), 256, cpu())
    full = training_memory(recipe.model, 8, 16, optimizer="adamw")
    half = training_memory(recipe.model, 8, 16, optimizer="adamw", product_bytes=2)
    copies = 2 * count_parameters(recipe.model).matrices
    assert (half.activations - copies) * 2 == full.activations
    assert half.weights == full.weights


def run_of(folder: Path, **model: object) -> Path:
    """A run that was started and saved once."""
    recipe = resolve_recipe(with_model(tiny_recipe(steps=1), **model), 256, cpu())
    parts = build(recipe, byte_dataset(folder / "data"), cpu())
    list(parts.trainer.run())
    run = RunFolder(folder / "run")
    run.create()
    files.write_text(run.path / "config.toml", dump_recipe(recipe))
    run.save(snapshot(parts), keep_last=1)
    return run.path


def test_a_teachers_memory_is_counted(tmp_path):
    """As many bytes as the frozen model holds; and what it says of a micro-batch of 8 x 16, which
    waits beside the student's: (8 x 16, D) and twice (8 x 16, V)."""
    path = run_of(tmp_path, d_model=64, n_layers=3)
    plain = resolve_recipe(tiny_recipe(steps=1), 256, cpu())
    recipe = replace(plain, stage="distill", distill=DistillConfig(teacher=str(path)))
    teacher = reference_of(recipe, byte_dataset(tmp_path / "data"), cpu())
    assert teacher is not None
    held = sum(one.numel() * one.element_size() for one in teacher.parameters())
    found, without = step_memory(recipe, cpu(), 8), step_memory(plain, cpu(), 8)
    assert found.frozen == held + 4 * 8 * 16 * 64 + 2 * 4 * 8 * 16 * 256
    assert found.total == without.total + found.frozen
    assert without.frozen == 0


def test_the_memory_of_a_reference_and_of_a_judge_is_counted(tmp_path):
    judge = run_of(tmp_path, d_model=64, n_layers=3)
    recipe = replace(resolve_recipe(tiny_recipe(), 256, cpu()), stage="grpo")
    own, its = (4 * count_parameters(one).total for one in (recipe.model, shape_of(judge)))

    def frozen(**changes) -> int:
        return step_memory(replace(recipe, **changes), cpu(), 8).frozen

    held = replace(recipe.policy, kl_weight=0.1)
    judged = replace(recipe.rollout, reward_model=str(judge))
    assert frozen() == 0
    assert frozen(policy=held) == own
    assert frozen(rollout=judged) == its
    assert frozen(policy=held, rollout=judged, stage="ppo") == own + its
    assert frozen(policy=held, lora=LoraConfig(rank=2)) == own
    # What is to come is taken to be of the recipe's own shape.
    assert frozen(rollout=replace(judged, reward_model="@reward")) == own
    # The reference of dpo is asked before the first step.
    assert frozen(stage="dpo", policy=held, rollout=judged) == 0


def shape_of(path: Path):
    return RunFolder(path).recipe().model


def test_a_teacher_makes_the_micro_batch_smaller(tmp_path):
    path = run_of(tmp_path)
    recipe = resolve_recipe(load_recipe_named("minimind-26m"), 6400, cpu())
    taught = replace(recipe, stage="distill", distill=DistillConfig(teacher=str(path)))
    available = step_memory(recipe, cpu(), 8).total
    assert fitting_rows(taught, cpu(), available) < fitting_rows(recipe, cpu(), available) == 8


def test_which_cards_hold_two_billion_parameters():
    """Weights, gradients and AdamW's state of 2,019,995,648 parameters are 32.3 GB."""
    recipe = resolve_recipe(load_recipe_named("pile-2b"), 50304, cpu())
    found = {card: settings_that_fit(recipe, card * 10**9) for card in (24, 32, 40, 48, 80)}
    assert found[24] is found[32] is None
    for card, fit in found.items():
        assert fit is None or fit.memory.total <= 0.85 * card * 10**9
    told = {card: (fit.precision, fit.checkpointing) for card, fit in found.items() if fit}
    assert told == {40: ("float32", True), 48: ("bfloat16", False), 80: ("bfloat16", False)}
