"""The trainer on a CUDA device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparrowlm.runtime import detect
from sparrowlm.train.build import build, resolve_recipe
from support import byte_dataset, cpu, tiny_recipe

pytestmark = pytest.mark.gpu


@pytest.fixture
def dataset(tmp_path):
    return byte_dataset(tmp_path / "data")


def curve(recipe, dataset, runtime):
    parts = build(resolve_recipe(recipe, 256, runtime), dataset, runtime)
    return [row.metrics["loss"][0] / row.metrics["loss"][1] for row in parts.trainer.run()]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_float64_curve_equals_the_cpu(dataset, optimizer):
    recipe = tiny_recipe(optimizer=optimizer)
    there = curve(recipe, dataset, detect("cuda", "float64"))
    assert there == pytest.approx(curve(recipe, dataset, cpu("float64")), rel=1e-8)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("compiled", ["off", "on"])
def test_loss_falls_in_half_precision(dataset, precision, compiled):
    recipe = tiny_recipe(steps=60)
    recipe = replace(recipe, train=replace(recipe.train, compile=compiled))
    losses = curve(recipe, dataset, detect("cuda", precision))
    assert losses[-1] < losses[0] - 1


def test_out_of_memory_is_met_with_smaller_micro_batches(dataset):
    """A real one: the share of the card that the process may use is cut to what is in use."""
    runtime = detect("cuda", "float32")
    recipe = tiny_recipe(steps=2)
    recipe = replace(
        recipe,
        model=replace(recipe.model, d_model=512, d_ff=2048, n_heads=8, max_seq_len=1024),
        train=replace(
            recipe.train, seq_len=1024, batch_tokens=64 * 1024, micro_batch_size=64, compile="off"
        ),
    )
    parts = build(resolve_recipe(recipe, 256, runtime), dataset, runtime)
    total = torch.cuda.get_device_properties(runtime.device).total_memory
    torch.cuda.set_per_process_memory_fraction(1.5e9 / total)
    try:
        rows = list(parts.trainer.run())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert parts.trainer.state.micro_batch_size < 64
    assert all(row.applied for row in rows)
