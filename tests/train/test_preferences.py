"""Preferences, policies and students through the one loop."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from sparrowlm import files
from sparrowlm.checkpoint import RunFolder
from sparrowlm.config import InitConfig, LoraConfig, TokenizerConfig, dump_recipe
from sparrowlm.data.mismatch import mismatched
from sparrowlm.data.sequences import PackedStream, SequenceDataset, Sequences
from sparrowlm.errors import ConfigError, RunError
from sparrowlm.objectives.policy import Policy
from sparrowlm.share.adapters import merge_run
from sparrowlm.text.tokenizer import make_tokenizer
from sparrowlm.train import mismatch
from sparrowlm.train.build import build, resolve_recipe
from sparrowlm.train.measure import measure
from sparrowlm.train.mismatch import WithReferencePoint
from sparrowlm.train.reference import load_frozen, referenced
from sparrowlm.train.sitting import snapshot
from sparrowlm.train.stages import STAGES, Stage, held_out_sequences, packed_stream
from support import byte_dataset, cpu, tiny_recipe, with_model

VOCABULARY = 257


def sequences(count: int, seed: int, bundle_size: int = 2) -> Sequences:
    """Pairs with a pattern to learn: what is chosen counts up from the prompt's last id, what is
    rejected counts down."""
    draw = np.random.default_rng(seed)
    ids, mask, starts = [], [], [0]
    for _ in range(count):
        prompt = draw.integers(40, 200, draw.integers(1, 4))
        for side in range(bundle_size):
            steps = np.arange(1, draw.integers(2, 5))
            ids += [prompt, prompt[-1] + (steps if side == 0 else -steps)]
            mask += [np.zeros(len(prompt), bool), np.ones(len(steps), bool)]
            starts.append(starts[-1] + len(prompt) + len(steps))
    return Sequences(np.concatenate(ids), np.concatenate(mask), np.array(starts), bundle_size)


def pair_dataset() -> SequenceDataset:
    return SequenceDataset(
        train=sequences(200, 1),
        val=sequences(12, 2),
        tokenizer=make_tokenizer(TokenizerConfig(kind="bytes"), lambda: ()),
        vocab_size=VOCABULARY,
        eot_id=256,
        fingerprint="pairs",
        description={},
    )


def recipe_of(stage: str, runtime, steps: int = 8, micro_batch_size: int = 8, **tables):
    recipe = replace(tiny_recipe(steps, micro_batch_size), stage=stage)  # pyright: ignore[reportArgumentType]
    recipe = with_model(recipe, vocab_size=VOCABULARY)
    recipe = replace(recipe, optim=replace(recipe.optim, lr=1e-3))
    for table, changes in tables.items():
        recipe = replace(recipe, **{table: replace(getattr(recipe, table), **changes)})
    return resolve_recipe(recipe, VOCABULARY, runtime)


def base_run(folder, runtime, seed: int = 5) -> RunFolder:
    """A run to start from: what a few steps on the chosen answers leave."""
    recipe = recipe_of("sft", runtime, steps=3)
    recipe = replace(recipe, train=replace(recipe.train, seed=seed))
    parts = build(recipe, pair_dataset(), runtime)
    list(parts.trainer.run())
    run = RunFolder(folder)
    run.create()
    files.write_text(run.path / "config.toml", dump_recipe(recipe))
    run.save(snapshot(parts), keep_last=1)
    return run


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> RunFolder:
    return base_run(tmp_path_factory.mktemp("base") / "run", cpu("float64"))


def from_base(recipe, base):
    return replace(recipe, init=InitConfig(from_=str(base.path)))


def started(recipe, base, run, runtime, checkpoint=None, dataset=None):
    """What `pipeline.train` puts together."""
    recipe = from_base(recipe, base)
    found = referenced(
        recipe, dataset or pair_dataset(), run, runtime, resuming=checkpoint is not None
    )
    weights = base.load(base.best()).model
    return build(recipe, found, runtime, checkpoint, weights)


def same(first, second, tolerance):
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("loss", ["sigmoid", "kto", "orpo"])
def test_accumulation_does_not_change_preferences(loss, base, tmp_path):
    runtime = cpu("float64")
    runs = []
    for size in (8, 4, 1):
        recipe = recipe_of("dpo", runtime, micro_batch_size=size, preference={"loss": loss})
        recipe = replace(recipe, eval=replace(recipe.eval, micro_batch_size=3))
        parts = started(recipe, base, RunFolder(tmp_path / f"run{size}"), runtime)
        runs.append((parts, list(parts.trainer.run())))
    (first, rows), *others = runs
    for parts, theirs in others:
        same(first.model.parameters(), parts.model.parameters(), 1e-10)
        for row, other in zip(rows, theirs, strict=True):
            for name, pair in row.metrics.items():
                assert other.metrics[name] == pytest.approx(pair, rel=1e-8, abs=1e-9)
    before, after = (row.metrics["loss"][0] / row.metrics["loss"][1] for row in (rows[0], rows[-1]))
    assert after < before


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "cispo", "ppo"])
def test_accumulation_does_not_change_policies(kind, monkeypatch):
    runtime = cpu("float64")
    draw, dataset = np.random.default_rng(0), pair_dataset()
    size = len(dataset.train.ids)
    names = ("advantage", "old_logprob", "reference_logprob", "return", "old_value")
    columns = {name: draw.standard_normal(size).astype(np.float32) for name in names}
    columns["old_logprob"] -= 5.5
    columns["reference_logprob"] -= 5.5
    dataset = replace(dataset, train=dataset.train.with_columns(columns))

    def objective(scene):
        settings = replace(scene.recipe.policy, kl_weight=0.1, entropy_weight=0.01)
        return Policy(kind, settings, 8, scene.recipe.model.d_model)

    monkeypatch.setitem(STAGES, "grpo", Stage(packed_stream, held_out_sequences, objective))
    found = []
    for micro in (8, 3, 1):
        parts = build(recipe_of("grpo", runtime, micro_batch_size=micro), dataset, runtime)
        rows = list(parts.trainer.run())
        found.append(([*parts.model.parameters(), *parts.objective.parameters()], rows))
    (first, rows), *others = found
    for weights, theirs in others:
        same(first, weights, 1e-10)
        for row, other in zip(rows, theirs, strict=True):
            for name, pair in row.metrics.items():
                assert other.metrics[name] == pytest.approx(pair, rel=1e-8, abs=1e-9)


def test_accumulation_does_not_change_students(base):
    runtime = cpu("float64")
    teacher = load_frozen(str(base.path), "distill.teacher", pair_dataset(), runtime)
    runs = []
    for micro in (8, 2):
        recipe = recipe_of("distill", runtime, micro_batch_size=micro)
        parts = build(recipe, pair_dataset(), runtime, reference=teacher)
        list(parts.trainer.run())
        assert "teacher" not in "".join(snapshot(parts).trainer)
        runs.append(parts)
    same(runs[0].model.parameters(), runs[1].model.parameters(), 1e-10)


@pytest.mark.parametrize("tied", [True, False])
def test_whatever_a_judge_trains_gets_a_gradient(tied):
    """Between ranks the gradient of a head that no score is read off would be waited for."""
    runtime = cpu()
    recipe = recipe_of("reward", runtime, model={"tie_embeddings": tied})
    parts = build(recipe, pair_dataset(), runtime)
    parts.trainer.step_module(parts.trainer.stream.batch(0)).total.backward()
    trained = {name: p for name, p in parts.model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in trained.values())
    assert parts.model.state_dict().keys() - trained == (set() if tied else {"head.weight"})


@pytest.mark.parametrize("loss", ["sigmoid", "kto"])
def test_resume_equals_no_interruption(loss, base, tmp_path):
    runtime, run = cpu("float64"), RunFolder(tmp_path / "run")
    recipe = recipe_of("dpo", runtime, steps=6, preference={"loss": loss})
    straight = started(recipe, base, run, runtime)
    run.create()
    rows = []
    for row in straight.trainer.run():
        rows.append(row)
        run.save(snapshot(straight), keep_last=6)
    for step in (1, 4):
        resumed = started(recipe, base, run, runtime, run.load(step))
        tail = list(resumed.trainer.run())
        assert [(r.metrics, r.grad_norm) for r in tail] == [
            (r.metrics, r.grad_norm) for r in rows[step:]
        ]
        same(resumed.model.parameters(), straight.model.parameters(), 0)


def test_the_first_loss_is_ln_2_and_the_held_out_part_is_told(base, tmp_path):
    runtime = cpu("float64")
    recipe = recipe_of("dpo", runtime, steps=40, preference={"beta": 1.0}, optim={"lr": 5e-3})
    parts = started(recipe, base, RunFolder(tmp_path / "run"), runtime)
    before = measure(parts, parts.scene.recipe, parts.scene.dataset, runtime)
    assert before["val_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert before["val_margin"] == pytest.approx(0, abs=1e-5)
    list(parts.trainer.run())
    after = measure(parts, parts.scene.recipe, parts.scene.dataset, runtime)
    assert after["val_loss"] < math.log(2) - 0.1
    assert after["val_accuracy"] > 0.8
    assert after["val_margin"] > 0.3


def test_the_reference_is_asked_once(base, tmp_path, monkeypatch):
    runtime, run = cpu("float64"), RunFolder(tmp_path / "run")
    recipe = recipe_of("dpo", runtime)
    first = started(recipe, base, run, runtime).scene.dataset
    said = first.train.columns["reference_logprob"]
    assert (said[~first.train.mask] == 0).all()
    assert (said[first.train.mask] < 0).all()
    model = load_frozen(str(base.path), "init.from", first, runtime)
    (chosen, _) = first.train.bundle(7)
    tokens = torch.from_numpy(chosen.ids[:-1])[None]
    logs = model.logits(model(tokens).hidden)[0].log_softmax(-1)
    want = logs.gather(1, torch.from_numpy(chosen.ids[1:])[:, None])[:, 0].numpy()
    kept = chosen.mask[1:]
    np.testing.assert_allclose(chosen.columns["reference_logprob"][1:][kept], want[kept], rtol=1e-5)

    def refuse(*_, **__):
        raise AssertionError("asked again")

    monkeypatch.setattr("sparrowlm.train.reference.logprobs_of", refuse)
    again = started(recipe, base, run, runtime).scene.dataset
    assert np.array_equal(again.train.columns["reference_logprob"], said)
    with pytest.raises(AssertionError, match="asked again"):
        started(recipe, base, run, runtime, dataset=replace(pair_dataset(), fingerprint="other"))
    (run.path / "reference" / "train.f32").write_bytes(b"damaged")
    with pytest.raises(AssertionError, match="asked again"):
        started(recipe, base, run, runtime)


def test_another_reference_is_asked_again(base, tmp_path):
    runtime, run = cpu("float64"), RunFolder(tmp_path / "run")
    recipe = recipe_of("dpo", runtime)
    said = started(recipe, base, run, runtime).scene.dataset.train.columns["reference_logprob"]
    other = base_run(tmp_path / "other", runtime, seed=6)
    now = started(recipe, other, run, runtime).scene.dataset.train.columns["reference_logprob"]
    assert not np.array_equal(said, now)


def test_a_reference_that_is_not_named_is_a_mistake(tmp_path):
    runtime = cpu()
    recipe = recipe_of("dpo", runtime)
    with pytest.raises(ConfigError, match=r"init\.from"):
        referenced(recipe, pair_dataset(), RunFolder(tmp_path), runtime, resuming=False)
    with pytest.raises(RunError, match="not a run folder"):
        load_frozen(str(tmp_path), "distill.teacher", pair_dataset(), runtime)


def test_mismatched_answers_are_those_of_other_prompts():
    pairs = sequences(9, 3)
    found = mismatched(pairs, 16, seed=1)
    assert len(found) == 9
    answers = {
        one.ids[one.mask].tobytes(): (index, side)
        for index in range(9)
        for side, one in enumerate(pairs.bundle(index))
    }
    used = set()
    for index in range(9):
        (one,) = found.bundle(index)
        asked = pairs.bundle(index)[0]
        assert np.array_equal(one.ids[~one.mask], asked.ids[~asked.mask])
        other, side = answers[one.ids[one.mask].tobytes()]
        assert other != index
        assert side == index % 2
        used.add(other)
    assert used == set(range(9))
    (short,) = mismatched(pairs, 3, seed=1).bundle(0)
    assert len(short.ids) <= 4


def test_the_reference_point_is_one_number_of_the_whole_step(base, tmp_path, monkeypatch):
    """However many ranks share the step, and not below 0."""
    runtime = cpu("float64")
    recipe = recipe_of("dpo", runtime, preference={"loss": "kto"})
    parts = started(recipe, base, RunFolder(tmp_path / "run"), runtime)
    stream, data = parts.trainer.stream, parts.scene.dataset
    assert isinstance(stream, WithReferencePoint)
    apart = data.mismatched["train"]
    far = apart.columns["reference_logprob"] - apart.mask * np.float32(0.5)
    apart = apart.with_columns({"reference_logprob": far.astype(np.float32)})
    plain = PackedStream(data.train, 16, 8, recipe.train.seed)
    stream = WithReferencePoint(plain, apart, parts.model, runtime, rows=3)
    pairs = []
    monkeypatch.setattr(mismatch, "all_sum", lambda pair: pairs.append(pair) or pair)
    whole = stream.batch(2)
    stream.batch(2, 0, 2), stream.batch(2, 1, 2)
    torch.testing.assert_close(pairs[0], pairs[1] + pairs[2], rtol=1e-12, atol=0)
    point = whole.columns["reference_point"]
    assert (point == point[0, 0]).all()
    answers = sum(
        (apart.bundle(one)[0].mask.sum() for row in plain.bundles(2) for one in row), start=0
    )
    bundles = sum(map(len, plain.bundles(2)))
    assert pairs[0][1] == bundles
    # The policy still is the reference, so all that moved is the half nat of each target.
    assert point[0, 0].item() == pytest.approx(0.5 * answers / bundles, rel=1e-5)
    assert parts.model.training
    near = apart.with_columns({"reference_logprob": np.zeros_like(far)})
    low = WithReferencePoint(plain, near, parts.model, runtime, rows=3).batch(2)
    assert (low.columns["reference_point"] == 0).all()


@pytest.mark.slow
def test_a_student_with_a_teacher_beats_the_same_student_without(tmp_path):
    """At equal steps, by the held-out nats of the targets."""
    runtime = cpu()
    dataset = byte_dataset(tmp_path / "data")

    def trained(stage, steps, teacher=None, **changes):
        recipe = replace(tiny_recipe(steps), stage=stage)
        recipe = with_model(recipe, **changes)
        recipe = replace(recipe, distill=replace(recipe.distill, weight=0.8))
        recipe = resolve_recipe(recipe, 256, runtime)
        parts = build(recipe, dataset, runtime, reference=teacher)
        list(parts.trainer.run())
        return parts.model, measure(parts, recipe, dataset, runtime)

    teacher, best = trained("pretrain", 1500, d_model=96, d_ff=256)
    teacher.eval().requires_grad_(False)
    _, alone = trained("pretrain", 150, d_model=24, d_ff=48)
    _, taught = trained("distill", 150, teacher, d_model=24, d_ff=48)
    assert best["val_loss"] < taught["val_cross_entropy"] < alone["val_loss"]


def test_changes_beside_the_weights_start_at_the_reference_and_leave_it(base, tmp_path):
    runtime = cpu("float64")
    recipe = replace(recipe_of("dpo", runtime, optim={"lr": 1e-2}), lora=LoraConfig(rank=2))
    parts = started(recipe, base, RunFolder(tmp_path / "run"), runtime)
    rows = list(parts.trainer.run())
    losses = [row.metrics["loss"][0] / row.metrics["loss"][1] for row in rows]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < losses[0] - 1e-3
    frozen, own = base.load(base.best()).model, parts.model.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in frozen.items())
    assert all(name.endswith(("lora_a", "lora_b")) for name in snapshot(parts).model)


def test_a_merged_reward_model_keeps_its_head(base, tmp_path):
    runtime = cpu("float64")
    recipe = replace(recipe_of("reward", runtime), lora=LoraConfig(rank=2))
    parts = started(recipe, base, RunFolder(tmp_path / "run"), runtime)
    list(parts.trainer.run())
    run = RunFolder(tmp_path / "run")
    run.create()
    run.save_base(base.load(base.best()).model, str(base.path))
    files.write_text(run.path / "config.toml", dump_recipe(from_base(recipe, base)))
    run.save(snapshot(parts), keep_last=1)
    merge_run(run.path, tmp_path / "merged")
    merged = RunFolder(tmp_path / "merged")
    saved = merged.load(merged.best())
    head = parts.objective.state_dict()
    assert saved.under("objective/").keys() == head.keys() != set()
    assert all(torch.equal(saved.under("objective/")[name], head[name]) for name in head)
    assert set(saved.trainer) == {f"objective/{name}" for name in head}
    assert saved.model.keys() == base.load(base.best()).model.keys()
