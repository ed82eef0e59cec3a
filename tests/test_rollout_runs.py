"""Policies from prompts to a run folder: held to a reference, as adapters, judged by a reward
model, in turns of a chat."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparrowlm.checkpoint import RunFolder, find_run
from sparrowlm.config import Recipe
from sparrowlm.errors import ConfigError, RunError
from sparrowlm.infer.rollouts import RolloutStream
from sparrowlm.model.transformer import Transformer
from sparrowlm.objectives.reward import Reward
from sparrowlm.pipeline import load_run, train
from sparrowlm.train.build import build, load_weights, resolve_recipe
from sparrowlm.train.opening import dataset_of, inherit
from sparrowlm.train.reference import reference_of
from stage_support import only_adapters_moved, run, shrunk, write_files
from support import Silent, cpu, quick, same_results

LEARNING = {"lr": 1e-2, "warmup_steps": 1}
CONSONANTS = "def consonants(completion, row):\n    return len(set(completion) & set('bcdfgh'))\n"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Iterator[dict[str, Path]]:
    """Data of every kind, a run with a vocabulary of chats, a reward of our own and one learned."""
    folder = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        quick(patch, folder)
        found = write_files(folder) | {"mine": folder / "mine.py", "judge": folder / "judge"}
        found["mine"].write_text(CONSONANTS, encoding="utf-8")
        run(shrunk("reward", found, "pairs", optim=LEARNING), found["judge"])
        yield found


def rewarded(files: dict[str, Path], name: str = "grpo", **changes) -> Recipe:
    """The recipe with a reward that a policy of random weights sometimes earns."""
    rollout = {"rewards": (f"{files['mine']}:consonants",), "prompts": 3, "group_size": 4}
    rollout |= changes.pop("rollout", {})
    return shrunk(name, files, "prompts", optim=LEARNING, rollout=rollout, **changes)


def stream_of(recipe: Recipe) -> RolloutStream:
    """The stream as `train` builds it."""
    recipe, runtime = inherit(recipe), cpu()
    dataset = dataset_of(recipe, runtime)
    recipe = resolve_recipe(recipe, dataset.vocab_size, runtime)
    found, step = find_run(Path(recipe.init.from_))
    parts = build(
        recipe, dataset, runtime, weights=found.weights(step),
        reference=reference_of(recipe, dataset, runtime),
    )  # fmt: skip
    assert isinstance(parts.trainer.stream, RolloutStream)
    return parts.trainer.stream


def stopped_after(steps: int):
    left = iter(range(steps - 1))
    return lambda: next(left, None) is None


def test_a_reference_is_where_the_policy_starts(files, tmp_path) -> None:
    """And stays there: what it says of the second rollout is what the base says."""
    rows = run(rewarded(files, policy={"kl_weight": 0.1}), tmp_path / "run")
    told = [row["kl"] for row in rows if row["kind"] == "train"]
    assert told[0] == pytest.approx(0, abs=1e-9)
    assert all(kl >= 0 for kl in told)
    assert told[-1] > 1e-4
    saved = RunFolder(tmp_path / "run").load(3).under("stream/")
    assert saved["boundary"] == 1
    base = load_run(files["base"], "cpu", "float32").model
    with torch.no_grad():
        logits = base.logits(base(saved["tokens"], saved["segments"]).hidden)
    logs = logits.log_softmax(-1).gather(-1, saved["targets"][..., None])[..., 0]
    chosen = saved["mask"]
    said = saved["columns/reference_logprob"][chosen]
    torch.testing.assert_close(said, logs[chosen], rtol=0, atol=1e-5)
    assert (said - saved["columns/old_logprob"][chosen]).abs().max() > 0.01


def test_a_policy_that_is_held_resumes_exactly(files, tmp_path) -> None:
    recipe = rewarded(files, policy={"kl_weight": 0.1})
    run(recipe, tmp_path / "straight")
    half = tmp_path / "half"
    assert train(recipe, half, Silent(), should_stop=stopped_after(3)) is None  # pyright: ignore
    run(recipe, half, resume=True)
    same_results(tmp_path / "straight", half)


def test_adapters_are_a_policy(files, tmp_path) -> None:
    """It writes as its base does until it has learned; then it is the changes that have."""
    whole = run(rewarded(files), tmp_path / "whole")
    recipe = rewarded(files, lora={"rank": 2}, policy={"kl_weight": 0.1})
    rows = run(recipe, tmp_path / "run")
    first = next(row for row in rows if row["kind"] == "train")
    plain = next(row for row in whole if row["kind"] == "train")
    assert first["reward"] == plain["reward"] > 0
    assert (first["ratio"], first["clipped"]) == (1.0, 0.0)
    only_adapters_moved(tmp_path / "run", files["base"])
    half = tmp_path / "half"
    assert train(recipe, half, Silent(), should_stop=stopped_after(3)) is None  # pyright: ignore
    run(recipe, half, resume=True)
    same_results(tmp_path / "run", half)


def test_adapters_are_a_policy_with_a_value_head(files, tmp_path) -> None:
    run(rewarded(files, "ppo", lora={"rank": 2}), tmp_path / "run")
    only_adapters_moved(tmp_path / "run", files["base"])
    trained = RunFolder(tmp_path / "run").load(6).under("optimizer/")
    assert trained
    assert all(".lora_" in name or name.startswith("objective.") for name in trained)


def test_the_judge_and_the_reference_of_a_policy_stay_what_they_were(files, tmp_path) -> None:
    changes = {"policy": {"kl_weight": 0.1}, "rollout": {"reward_model": str(files["judge"])}}
    changes["train"] = {"length": "1 steps"}
    run(rewarded(files, **changes), tmp_path / "run")
    asked = json.loads((tmp_path / "run" / "asked.json").read_text(encoding="utf-8"))
    assert {key: (one["named"], one["step"]) for key, one in asked.items()} == {
        "init.from": (str(files["base"]), find_run(files["base"])[1]),
        "rollout.reward_model": (str(files["judge"]), find_run(files["judge"])[1]),
    }


def test_a_reward_models_score_is_added(files, tmp_path) -> None:
    """Against its own say of each sequence alone, in a row of its own."""
    recipe = rewarded(files, rollout={"reward_model": str(files["judge"])})
    stream = stream_of(recipe)
    prompts = stream.dataset.train[:3]
    written = stream._write(prompts, 4, seed=1, temperature=1.0)
    folder, step = find_run(files["judge"])
    model = Transformer(folder.recipe().model).eval()
    load_weights(model, folder.weights(step))
    judge = Reward(model.config.d_model)
    judge.load_state_dict(folder.load(step).under("objective/"))
    ids, lengths = written.ids, written.lengths.tolist()
    with torch.no_grad():
        for row, size, scored in zip(ids, lengths, written.rewards[:, 1], strict=True):
            # The last id is a target alone: the head reads the position before it.
            last = model(row[None, : size - 1]).hidden[0, -1]
            wanted = judge.head(last).item()
            assert scored.item() == pytest.approx(wanted, abs=1e-5)
    assert written.rewards[:, 1].std() > 0
    stream.close()
    rows = run(recipe, tmp_path / "run")
    first = next(row for row in rows if row["kind"] == "train")
    parts = [first[f"reward/{name}"] for name in stream.names]
    assert first["reward"] == pytest.approx(sum(parts))


def test_a_reward_model_may_judge_alone(files, tmp_path) -> None:
    recipe = rewarded(files, "ppo", rollout={"rewards": (), "reward_model": str(files["judge"])})
    rows = run(recipe, tmp_path / "run")
    measured = {row["step"]: row["val_reward"] for row in rows if row["kind"] == "eval"}
    assert measured.keys() == {0, 3, 6}
    assert any("value_loss" in row for row in rows)
    # What a run starts from is measured, and is no checkpoint that it could claim.
    summary = json.loads((tmp_path / "run/summary.json").read_text(encoding="utf-8"))
    assert summary["val_reward"] == max(measured[3], measured[6])


def test_what_cannot_judge_is_refused(files, tmp_path) -> None:
    with pytest.raises(RunError, match="is no reward model"):
        stream_of(rewarded(files, rollout={"reward_model": str(files["base"])}))
    shutil.copytree(files["judge"], tmp_path / "short")
    config = tmp_path / "short" / "config.toml"
    told = config.read_text(encoding="utf-8")
    assert "max_seq_len = 768" in told
    config.write_text(told.replace("max_seq_len = 768", "max_seq_len = 32"), encoding="utf-8")
    with pytest.raises(ConfigError, match="reads 32 tokens, and a completion may have 96"):
        stream_of(rewarded(files, rollout={"reward_model": str(tmp_path / "short")}))


def test_rollouts_of_a_chat_are_its_turns(files) -> None:
    recipe = rewarded(files, rollout={"system": "Be brief.", "max_tokens": 12})
    stream = stream_of(recipe)
    tokenizer, seen = stream.dataset.tokenizer, []
    judge, stream.judge = stream.judge, lambda cases: seen.extend(cases) or judge(cases)
    batch = stream.batch(0)
    assert batch.segments is not None
    ends = {tokenizer.special_ids["<|im_end|>"], tokenizer.eot_id}
    texts = []
    for row in range(len(batch.tokens)):
        for segment in range(int(batch.segments[row].max()) + 1):
            here = batch.segments[row] == segment
            asked = batch.tokens[row][here & ~batch.mask[row]].tolist()
            said = batch.targets[row][here & batch.mask[row]].tolist()
            asked.append(batch.tokens[row][here][len(asked)].item())
            texts.append((tokenizer.decode(asked, specials=True), said))
            assert not ends.intersection(said[:-1])  # each ends a completion
    for asked, _ in texts:
        system, user, assistant = asked.split("<|im_start|>")[1:]
        assert system == "system\nBe brief.<|im_end|>\n"
        assert user.startswith("user\n")
        assert assistant == "assistant\n<think>\n\n</think>\n\n"
    own = [[id for id in ids if id not in ends] for _, ids in texts]
    said = sorted(tokenizer.decode(ids, specials=True) for ids in own)
    assert said == sorted(case.completion for case in seen)
    judge.close()


def test_a_reward_for_the_format_opens_a_thought(files) -> None:
    stream = stream_of(rewarded(files, rollout={"rewards": ("format",)}))
    shown = stream.dataset.tokenizer.decode(stream.dataset.train[0].ids, specials=True)
    assert shown.endswith("<|im_start|>assistant\n<think>\n")
    stream.close()


def test_a_thought_is_opened_behind_a_tools_result_too(files) -> None:
    rollout = {"rewards": ("format",), "tools": ("calculator",)}
    stream = stream_of(rewarded(files, "tool-use", rollout=rollout))
    shown = stream.dataset.tokenizer.decode(stream.dialect.result("42"), specials=True)
    assert shown.endswith("<|im_start|>assistant\n<think>\n")
    stream.close()


def test_tools_need_turns_in_which_a_result_can_be_told(files, monkeypatch) -> None:
    recipe = rewarded(files, "tool-use")
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|endoftext|>{% endfor %}"
    template += "{% if add_generation_prompt %}[assistant]{% endif %}"
    monkeypatch.setattr("sparrowlm.text.tokenizer.Tokenizer.chat_template", template)
    with pytest.raises(ConfigError, match=r"rollout\.tools: cannot be called in the turns"):
        stream_of(recipe)


def test_a_policy_leaves_its_runs_dropout_out(files, tmp_path) -> None:
    """Quickstart gives larger models some; the policy that is trained is the one that wrote."""
    base = shrunk("sft", files, "chats")
    model = replace(RunFolder(files["base"]).recipe().model, dropout=0.2)
    run(replace(base, model=model), tmp_path / "base")
    recipe = rewarded(files)
    recipe = replace(recipe, init=replace(recipe.init, from_=str(tmp_path / "base")))
    assert inherit(recipe).model == replace(model, dropout=0.0)
    assert inherit(replace(recipe, stage="dpo")).model == model
    rows = run(recipe, tmp_path / "run")
    assert next(row for row in rows if row["kind"] == "train")["ratio"] == 1
    with pytest.raises(ConfigError, match=r"dropout must be 0"):
        run(replace(recipe, model=model), tmp_path / "refused")
    assert load_run(tmp_path / "run", "cpu").model.config.dropout == 0


@pytest.mark.parametrize("chat", [True, False])
def test_samples_are_asked_for_as_rollouts_are(files, tmp_path, chat) -> None:
    """With chats the prompt is a user's turn, which a sample shows on a line before the answer."""
    samples = {"every": "1 steps", "prompts": ["abc"], "temperature": 0.0, "max_tokens": 4}
    recipe = rewarded(files, train={"length": "1 steps"}, rollout={"chat": chat}, samples=samples)
    run(recipe, tmp_path / "run")
    lines = (tmp_path / "run" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[-1])["text"].startswith("\n") == chat
