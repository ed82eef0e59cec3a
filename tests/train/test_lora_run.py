"""Runs that train low-rank changes: base once, small checkpoints, exact resume, equal ranks."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lora_support import LORA, logits, lora_recipe, run, text_recipe
from sparrowlm import files
from sparrowlm.checkpoint import RunFolder, find_run
from sparrowlm.config import InitConfig, LoraConfig, dump_recipe, load_recipe
from sparrowlm.errors import ConfigError, RunError
from sparrowlm.model.count import lora_parameters
from sparrowlm.pipeline import load_run, plan_recipe
from sparrowlm.train.build import build, resolve_recipe
from sparrowlm.train.sitting import snapshot
from support import byte_dataset, cpu, quick, run_ranks, same_results, tiny_recipe, write_recipe

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a base run and a LoRA run on it, and the recipes of both."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        quick(patch, folder)
        recipe = text_recipe(folder)
        run(recipe, folder / "base")
        change = lora_recipe(recipe, folder / "base")
        change = replace(change, checkpoint=replace(change.checkpoint, every="2 steps"))
        summary, told = run(change, folder / "lora")
        assert summary is not None
        assert told == []
        yield folder, recipe, change


def test_the_base_is_kept_once_and_checkpoints_hold_changes_alone(runs):
    folder, _, _ = runs
    lora, (base, step) = RunFolder(folder / "lora"), find_run(folder / "base")
    assert len(lora.steps()) > 1
    wanted = base.load(step).model
    held = lora.load_base()
    assert held.keys() == wanted.keys()
    assert all(torch.equal(held[name], wanted[name]) for name in held)
    assert lora.base_facts()["from"] == str(base.folder(step))
    shape = lora.recipe()
    for saved in lora.steps():
        tensors = lora.load(saved).model
        assert all(name.endswith(("lora_a", "lora_b")) for name in tensors)
        numbers = lora_parameters(shape.model, shape.lora)
        assert sum(tensor.numel() for tensor in tensors.values()) == numbers
    small = (lora.folder(lora.newest()) / "model.safetensors").stat().st_size
    large = (lora.base / "model.safetensors").stat().st_size
    assert small < large / 4  # of rank 2 in a width of 32; names and offsets are half of it
    assert len(list((folder / "lora").rglob("model.safetensors"))) == len(lora.steps()) + 1


def test_a_damaged_base_is_refused(runs, tmp_path):
    folder, _, _ = runs
    copy = tmp_path / "lora"
    shutil.copytree(folder / "lora", copy)
    path = copy / "base" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match="differs from its manifest"):
        load_run(copy, "cpu")


def test_a_run_of_changes_learns_and_its_base_stays(runs):
    folder, _, _ = runs
    before, after = (load_run(folder / name, "cpu").model for name in ("base", "lora"))
    changed = {
        name
        for name, tensor in before.state_dict().items()
        if not torch.equal(tensor, after.state_dict()[name])
    }
    kinds = {name.split(".")[-2] for name in changed}
    assert kinds == {"q", "k", "v", "o", "gate", "up", "down"}
    first, then = (
        RunFolder(folder / name).load(RunFolder(folder / name).best()).state.best_val_loss
        for name in ("base", "lora")
    )
    assert then < first


def test_the_folder_alone_is_enough(runs, tmp_path):
    folder, _, _ = runs
    want = logits(load_run(folder / "lora", "cpu").model)
    shutil.copytree(folder / "lora", tmp_path / "elsewhere")
    patch = (tmp_path / "elsewhere" / "config.toml").read_text(encoding="utf-8")
    gone = patch.replace(str(folder / "base"), str(tmp_path / "gone"))
    files.write_text(tmp_path / "elsewhere" / "config.toml", gone)
    found = load_run(tmp_path / "elsewhere", "cpu").model
    torch.testing.assert_close(logits(found), want, rtol=0, atol=0)


@pytest.mark.parametrize("resolved", [False, True], ids=["recipe", "config.toml"])
def test_resume_goes_on_where_the_run_that_it_came_from_has_gone(runs, tmp_path, resolved):
    """By the recipe as it was written, and by the run's own config.toml."""
    folder, _, recipe = runs
    base = tmp_path / "base"
    shutil.copytree(folder / "base", base)
    recipe = replace(recipe, init=InitConfig(str(base)))
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    run(recipe, whole)
    asked = iter([False, False, True])
    assert run(recipe, cut, should_stop=lambda: next(asked, True))[0] is None
    assert RunFolder(cut).newest() == 3
    shutil.rmtree(base)
    again = RunFolder(cut).recipe() if resolved else recipe
    summary, _ = run(again, cut, resume=True)
    assert summary is not None
    same_results(cut, whole)


def test_a_run_of_all_weights_goes_on_where_the_run_that_it_came_from_has_gone(runs, tmp_path):
    folder, _, recipe = runs
    base = tmp_path / "base"
    shutil.copytree(folder / "base", base)
    recipe = replace(recipe, init=InitConfig(str(base)), lora=LoraConfig())
    assert run(recipe, tmp_path / "run", should_stop=lambda: True)[0] is None
    shutil.rmtree(base)
    assert run(recipe, tmp_path / "run", resume=True)[0] is not None


def test_a_run_starts_from_a_run_of_changes_with_them_in_its_weights(runs, tmp_path):
    folder, _, recipe = runs
    further = replace(recipe, init=InitConfig(str(folder / "lora")))
    run(further, tmp_path / "further")
    want = load_run(folder / "lora", "cpu").model.state_dict()
    found = RunFolder(tmp_path / "further").load_base()
    assert all(torch.equal(found[name], want[name]) for name in want)


def test_other_changes_cannot_be_resumed(runs, tmp_path):
    folder, _, recipe = runs
    copy = tmp_path / "lora"
    shutil.copytree(folder / "lora", copy)
    for lora in (replace(LORA, rank=3), replace(LORA, targets=("q",)), LoraConfig()):
        with pytest.raises(RunError, match=r"lora\."):
            run(replace(recipe, lora=lora), copy, resume=True)


def test_before_its_first_checkpoint_a_run_may_take_other_changes_of_another_base(runs, tmp_path):
    folder, _, recipe = runs
    copy = tmp_path / "lora"
    shutil.copytree(folder / "lora", copy, ignore=shutil.ignore_patterns("step-*"))
    other = replace(recipe, lora=replace(LORA, rank=3), init=InitConfig(str(folder / "lora")))
    summary, told = run(other, copy, resume=True)
    assert summary is not None
    assert f"lora.rank was {LORA.rank} and is now 3" in told
    want = load_run(folder / "lora", "cpu").model.state_dict()
    found = RunFolder(copy).load_base()
    assert all(torch.equal(found[name], want[name]) for name in want)


def test_without_a_run_to_start_from_nothing_begins(runs, tmp_path):
    _, recipe, _ = runs
    with pytest.raises(ConfigError, match=r"init\.from names no run"):
        run(replace(recipe, lora=LORA), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"init\.from names no run"):
        plan_recipe(replace(recipe, lora=LORA))
    assert not (tmp_path / "run").exists()


def test_the_plan_states_what_is_trained(runs):
    _, recipe, change = runs
    plan, _, _ = plan_recipe(change)
    full, _, _ = plan_recipe(recipe)
    held = lora_parameters(plan.recipe.model, LORA)
    assert plan.trained == held
    assert full.trained == full.parameters.total == plan.parameters.total
    assert plan.checkpoint_bytes == 3 * 4 * held
    assert f"{plan.trained / 1e3:.2f}"[:3] in plan.short()[0]
    assert "rank 2" in plan.short()[0]


def test_resume_equals_no_interruption_at_every_step(tmp_path):
    """With dropout in the model and in the changes."""
    dataset, runtime = byte_dataset(tmp_path / "data"), cpu()
    lora = replace(LORA, dropout=0.2)
    recipe = replace(tiny_recipe(6, 4, "muon"), lora=lora, init=InitConfig("base"))
    recipe = replace(recipe, model=replace(recipe.model, dropout=0.1))
    recipe = resolve_recipe(recipe, 256, runtime)
    plain = replace(recipe, lora=LoraConfig())
    weights = snapshot(build(plain, dataset, runtime)).model
    straight = build(recipe, dataset, runtime, weights=weights)
    folder = RunFolder(tmp_path / "run")
    folder.create()
    rows = []
    for row in straight.trainer.run():
        rows.append(row)
        folder.save(snapshot(straight), keep_last=6)
    expected = snapshot(straight)
    for k in folder.steps():
        resumed = build(recipe, dataset, runtime, folder.load(k), weights)
        tail = list(resumed.trainer.run())
        assert [(r.step, r.metrics, r.grad_norm) for r in tail] == [
            (r.step, r.metrics, r.grad_norm) for r in rows[k:]
        ]
        found = snapshot(resumed)
        for mine, theirs in ((found.model, expected.model), (found.trainer, expected.trainer)):
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_fifty_examples_say_the_name():
    text = (RECIPES / "identity.jsonl").read_text(encoding="utf-8")
    turns = [json.loads(line)["messages"] for line in text.splitlines()]
    assert len(turns) == len({user["content"] for user, _ in turns}) == 50
    for user, assistant in turns:
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert "Sparrow" in assistant["content"]
    chinese = [user for user, _ in turns if not user["content"].isascii()]
    assert len(chinese) == 25


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path, monkeypatch):
    train = {"precision": "float64", "micro_batch_size": 2, "length": "8 steps"}
    recipe = write_recipe(tmp_path, train=train)
    quick(monkeypatch, tmp_path)
    run(load_recipe(recipe), tmp_path / "base")
    text = dump_recipe(lora_recipe(RunFolder(tmp_path / "base").recipe(), tmp_path / "base"))
    recipe.write_text(text, encoding="utf-8")
    run(load_recipe(recipe), tmp_path / "run1")
    done = run_ranks("train", recipe, "--out", tmp_path / "run2", ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (RunFolder(tmp_path / f"run{ranks}") for ranks in (1, 2))
    first, second = (each.load(each.newest()) for each in (one, two))
    assert first.model.keys() == second.model.keys()
    for name, tensor in first.model.items():
        torch.testing.assert_close(second.model[name], tensor, rtol=0, atol=1e-10)
        assert tensor.abs().max() > 0
