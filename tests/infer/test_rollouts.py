"""Rollouts: what is written, judged, packed and gone on with."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import zstandard

from hub_support import Hub, serving
from sparrowlm.batch import Batch
from sparrowlm.checkpoint import RunFolder, State
from sparrowlm.config import Recipe, TokenizerConfig, dump_recipe
from sparrowlm.config.load import recipe_from_dict
from sparrowlm.data.prompts import open_prompts
from sparrowlm.data.sources import Source, as_sources
from sparrowlm.errors import ConfigError, DataError, UserError
from sparrowlm.infer.answers import Answer, Dialect, write
from sparrowlm.infer.engine import Engine, Piece
from sparrowlm.infer.rollouts import RolloutStream
from sparrowlm.infer.sampling import Sampling
from sparrowlm.infer.tools import Toolbox
from sparrowlm.pipeline import train
from sparrowlm.text.tokenizer import byte_tokenizer, train_tokenizer
from sparrowlm.train.build import Parts, build, resolve_recipe
from sparrowlm.train.opening import dataset_of
from support import Silent, cpu, measured_again, quick, run_ranks, same_results, write_parquet

REWARD = "def vowels(completion, row):\n    return sum(one in 'aeiou' for one in completion)\n"


@pytest.fixture(autouse=True)
def _quick(tmp_path, monkeypatch) -> None:
    quick(monkeypatch, tmp_path)


@pytest.fixture
def folder(tmp_path):
    rows = [{"prompt": f"{a}+{b}=", "gold": str(a + b)} for a in range(6) for b in range(6)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "prompts.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "mine.py").write_text(REWARD, encoding="utf-8")
    return tmp_path


def recipe_in(folder, stage="grpo", steps=4, rollout=None, **tables) -> Recipe:
    """A tiny policy of bytes that is rewarded for vowels."""
    values = {
        "stage": stage,
        "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 32, "max_seq_len": 32},
        "tokenizer": {"kind": "bytes"},
        "data": {"path": [str(folder / "prompts.jsonl")], "val_fraction": 0.2},
        "train": {
            "length": f"{steps} steps", "batch_tokens": 64, "micro_batch_size": 2,
            "precision": "float32", "device": "cpu", "compile": "off",
        },
        "optim": {"name": "adamw", "lr": 1e-2, "warmup_steps": 1},
        "rollout": {
            "prompts": 3, "group_size": 4, "steps": 2, "max_tokens": 8, "chat": False,
            "rewards": [f"{folder / 'mine.py'}:vowels"], "eval_prompts": 4, **(rollout or {}),
        },
        "eval": {"every": "2 steps"},
        "samples": {"every": ""},
        "checkpoint": {"every": "1 steps", "keep_last": 9},
    }  # fmt: skip
    for table, changes in tables.items():
        values[table] = {**values.get(table, {}), **changes}
    return recipe_from_dict(values)


def parts_of(recipe: Recipe) -> Parts:
    dataset = dataset_of(recipe, cpu())
    return build(resolve_recipe(recipe, dataset.vocab_size, cpu()), dataset, cpu())


def stream_of(parts: Parts) -> RolloutStream:
    stream = parts.trainer.stream
    assert isinstance(stream, RolloutStream)
    return stream


def completions(batch: Batch) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """(targets, columns) of what was chosen in each segment."""
    assert batch.segments is not None
    found = []
    for row in range(len(batch.tokens)):
        for segment in range(int(batch.segments[row].max()) + 1):
            here = (batch.segments[row] == segment) & batch.mask[row]
            columns = {name: value[row, here] for name, value in batch.columns.items()}
            found.append((batch.targets[row, here], columns))
    return found


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo"])
def test_advantages_are_those_of_the_group_by_hand(folder, loss):
    stream = stream_of(parts_of(recipe_in(folder, policy={"loss": loss})))
    rewards, write = [], stream._write

    def kept(*given):
        written = write(*given)
        rewards.append((written.rewards @ stream.weights).view(3, 4))
        return written

    stream._write = kept
    found = completions(stream.batch(0))
    assert len(found) == 12
    decode = stream.dataset.tokenizer.decode
    earned = [sum(one in "aeiou" for one in decode(ids.tolist())) for ids, _ in found]
    for ids, columns in found:  # one advantage for all of a completion
        assert len(set(columns["advantage"].tolist())) == 1
        assert 1 <= len(ids) <= 8
    assert stream.metrics()["reward"] == (sum(earned), 12)
    apart = rewards[0] - rewards[0].mean(1, keepdim=True)
    if loss == "grpo":
        apart = apart / (rewards[0].std(1, correction=0, keepdim=True) + 1e-8)
    wanted = zip(rewards[0].flatten().tolist(), apart.flatten().tolist(), strict=True)
    given = [float(columns["advantage"][0]) for _, columns in found]
    told = sorted(zip(earned, given, strict=True))
    for (reward, advantage), (same, by_hand) in zip(told, sorted(wanted), strict=True):
        assert reward == same
        assert advantage == pytest.approx(by_hand, abs=1e-5)
    stream.close()


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_the_first_ratio_is_exactly_one(folder, stage):
    parts = parts_of(recipe_in(folder, stage))
    stream = stream_of(parts)
    batch = stream.batch(0)
    for start in range(0, len(batch.tokens), 2):
        found = parts.objective(parts.model, batch.rows(start, start + 2)).metrics
        assert found["ratio"][0] == found["ratio"][1] > 0
        assert found["clipped"][0] == 0
    stream.close()


def test_a_rollout_is_looked_at_in_the_micro_batches_that_fit(folder):
    """And the first ratio is one in these, too."""
    parts = parts_of(recipe_in(folder))
    judged = parts.objective.judged

    def greedy(model, batch):
        if len(batch.tokens) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return judged(model, batch)

    parts.objective.judged = greedy
    row = next(parts.trainer.run())
    assert parts.trainer.state.micro_batch_size == 1
    assert row.metrics["ratio"][0] == row.metrics["ratio"][1] > 0
    assert sum("earns" in message for message in row.events) == 3
    stream_of(parts).close()


def test_a_rollout_goes_on_with_more_ranks_than_it_has_rows(folder):
    recipe = recipe_in(folder)
    first, stream = stream_of(parts_of(recipe)), stream_of(parts_of(recipe))
    batch = first.batch(0)
    stream.runtime = replace(cpu(), world_size=len(batch.tokens) + 2)
    stream.load_state_tensors(first.state_tensors())
    shares = [stream.batch(1, rank, len(batch.tokens) + 2) for rank in range(len(batch.tokens) + 2)]
    assert [len(share.tokens) for share in shares] == [1] * (len(batch.tokens) + 2)
    for share in shares[-2:]:
        assert not share.mask.any()
        assert share.segments.eq(-1).all()
    assert torch.equal(shares[0].columns["old_logprob"], batch.columns["old_logprob"][:1])
    assert shares[-1].columns.keys() == batch.columns.keys()
    first.close(), stream.close()


def test_groups_of_equal_rewards_move_nothing(folder):
    parts = parts_of(recipe_in(folder, rollout={"rewards": ["length:9999"]}))
    stream = stream_of(parts)
    batch = stream.batch(0)
    assert stream.metrics()["zero_variance"] == (3, 3)
    assert not batch.columns["advantage"].any()
    parts.objective(parts.model, batch).total.backward()
    assert all(not p.grad.any() for p in parts.model.parameters() if p.grad is not None)
    stream.close()


def test_ppo_puts_the_reward_on_the_last_token(folder):
    recipe = recipe_in(folder, "ppo", policy={"discount": 0.5, "gae_lambda": 1.0})
    stream = stream_of(parts_of(recipe))
    for ids, columns in completions(stream.batch(0)):
        text = stream.dataset.tokenizer.decode(ids.tolist())
        reward = sum(one in "aeiou" for one in text)
        # With lambda 1 the return is the discounted reward, whatever the values say.
        wanted = [reward * 0.5 ** (len(ids) - 1 - t) for t in range(len(ids))]
        assert columns["return"].tolist() == pytest.approx(wanted, abs=1e-5)
    stream.close()


def test_draws_depend_on_seed_step_prompt_and_sample_alone(folder):
    recipe = recipe_in(folder)
    one, other = stream_of(parts_of(recipe)), stream_of(parts_of(recipe))
    assert torch.equal(one.batch(0).targets, other.batch(0).targets)
    other.batch(2)
    assert not torch.equal(one.batch(0).targets[0], other.batch(2).targets[0])
    assert len({tuple(ids.tolist()) for ids, _ in completions(one.batch(0))}) > 6
    one.close(), other.close()


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
@pytest.mark.parametrize("step", [2, 3])
def test_resume_is_exact_at_a_boundary_and_between(folder, stage, step):
    recipe = recipe_in(folder, stage)
    train(recipe, folder / "straight", Silent())
    train(recipe, folder / "stopped", Silent(), should_stop=Count(step))
    assert RunFolder(folder / "stopped").steps()[-1] == step
    train(recipe, folder / "stopped", Silent(), resume=True)
    same_results(folder / "straight", folder / "stopped")


class Count:
    """Says stop after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


def test_a_run_is_measured_by_its_held_out_reward(folder):
    display = Silent()
    summary = train(recipe_in(folder), folder / "run", display)
    run = RunFolder(folder / "run")
    rows = list(run.rows("metrics.jsonl"))
    rewards = {row["step"]: row["val_reward"] for row in rows if row["kind"] == "eval"}
    assert summary is not None
    assert summary["val_reward"] == max(rewards.values())
    best = json.loads((run.checkpoints / "best.json").read_text(encoding="utf-8"))
    assert rewards[best["step"]] == best["val_reward"] == max(rewards.values())
    assert measured_again(run.path)["reward"] == pytest.approx(best["val_reward"])
    told = [row for row in rows if row["kind"] == "train"]
    assert all(("reward" in row) == (row["step"] % 2 == 1) for row in told)
    assert {"zero_variance", "truncated", "reward"} <= told[0].keys()
    assert {"entropy", "length", "ratio"} <= told[1].keys()
    assert sum("earns" in message for message in display.events) == 3
    State(step=3)  # an older state.json has no reward


def test_a_failing_reward_is_named_and_stops_the_run_with_all_saved(folder):
    (folder / "mine.py").write_text(
        "calls = 0\ndef vowels(completion, row):\n"
        "    global calls\n    calls += 1\n    return 1.0 / (calls <= 14)\n", "utf-8",
    )  # fmt: skip
    recipe = recipe_in(folder, eval={"every": "99 steps"}, checkpoint={"every": "99 steps"})
    with pytest.raises(UserError, match=r"ZeroDivisionError.*prompts.jsonl:\d+"):
        train(recipe, folder / "run", Silent())
    assert RunFolder(folder / "run").steps() == [2]
    (folder / "mine.py").write_text(REWARD, "utf-8")
    assert train(recipe, folder / "run", Silent(), resume=True) is not None


def test_a_failing_reward_may_count_zero(folder):
    (folder / "mine.py").write_text("def vowels(c, r):\n    return float('nan')\n", "utf-8")
    display = Silent()
    train(recipe_in(folder, rollout={"on_fault": "zero"}), folder / "run", display)
    rows = [row for row in RunFolder(folder / "run").rows("metrics.jsonl") if "reward" in row]
    assert [row["failed_rewards"] for row in rows] == [1, 1]
    assert any("12 failed rewards count 0" in message for message in display.events)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_two_ranks_equal_one(folder, stage):
    recipe = recipe_in(folder, stage, train={"precision": "float64"})
    path = folder / "recipe.toml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    for ranks in (1, 2):
        done = run_ranks("train", path, "--out", folder / f"run{ranks}", ranks=ranks)
        assert done.returncode == 0, done.stdout + done.stderr
    one, two = (RunFolder(folder / f"run{ranks}").load(4) for ranks in (1, 2))
    for name, tensor in one.model.items():
        torch.testing.assert_close(two.model[name], tensor, rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "least"), [("grpo", 1.5), ("ppo", 4.0)])
def test_a_policy_learns_what_is_rewarded(folder, stage, least):
    """Random bytes are vowels with odds of 5 in 264: eight of them earn 0.15. After sixty updates
    they earn more than ten times as much, and of ppo's every second one is a vowel."""
    rollout = {"prompts": 8, "group_size": 8, "eval_prompts": 4}
    rarely = {"every": "99 steps"}
    recipe = recipe_in(folder, stage, 60, rollout, eval=rarely, checkpoint=rarely)
    train(recipe, folder / "run", Silent())
    rows = [row for row in RunFolder(folder / "run").rows("metrics.jsonl") if "reward" in row]
    earned = [row["reward"] for row in rows]
    assert sum(earned[:5]) / 5 < 0.25
    assert sum(earned[-5:]) / 5 > least
    # And held out, answered greedily.
    measured = [
        row for row in RunFolder(folder / "run").rows("metrics.jsonl") if row["kind"] == "eval"
    ]
    assert measured[-1]["val_reward"] > least


def test_prompts_are_split_by_hash_and_keep_their_rows(folder):
    settings = recipe_in(folder).rollout
    paths = [str(folder / "prompts.jsonl")]
    data = open_prompts(as_sources(paths), byte_tokenizer(), settings, val_fraction=0.3, longest=5)
    assert len(data.train) + len(data.val) == 36
    assert data.train[0].row["gold"]
    numbers = sorted(one.number for one in [*data.train, *data.val])
    assert numbers == list(range(1, 37))
    one = data.val[0]
    assert one.place.endswith(f":{one.number}")
    assert one.ids == [256, *one.row["prompt"].encode()]
    with pytest.raises(DataError, match="36 are longer than 3 tokens"):
        open_prompts(as_sources(paths), byte_tokenizer(), settings, val_fraction=0.3, longest=3)
    bad = Source(folder / "bad.jsonl")
    bad.path.write_text('{"prompt": "a"}\n{"question": "b"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"bad.jsonl:2: has no 'prompt'"):
        open_prompts([bad], byte_tokenizer(), settings, val_fraction=0)
    data = open_prompts([bad], byte_tokenizer(), settings, val_fraction=0, skip_bad=True)
    assert data.description["rejected"] == 1


@pytest.mark.parametrize("name", ["a.json", "a.jsonl.zst", "a.parquet", "hf:owner/name"])
def test_prompts_are_read_from_whatever_chats_are_read_from(folder, name, monkeypatch):
    lines = (folder / "prompts.jsonl").read_bytes()
    rows = [json.loads(line) for line in lines.splitlines()]
    path, mirror = str(folder / name), ""
    with ExitStack() as open_hub:
        match name:
            case "a.json":
                Path(path).write_text(json.dumps(rows), encoding="utf-8")
            case "a.jsonl.zst":
                Path(path).write_bytes(zstandard.compress(lines))
            case "a.parquet":
                write_parquet(Path(path), f"pa.Table.from_pylist({rows})")
            case _:
                from huggingface_hub import constants

                monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hf"))
                monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
                hub = open_hub.enter_context(serving(Hub({"prompts.jsonl": lines})))
                path, mirror = name, hub.address
        recipe = recipe_in(folder, data={"path": [path], "mirror": mirror})
        found = dataset_of(recipe, cpu())
    want = dataset_of(recipe_in(folder), cpu())
    assert [one.row for one in found.train] == [one.row for one in want.train]
    assert [one.ids for one in found.val] == [one.ids for one in want.val]


def test_impossible_settings_are_reported_together(folder):
    rollout = {"group_size": 1, "temperature": 0.0, "weights": [1.0, 2.0]}
    recipe = recipe_in(folder, rollout=rollout, model={"dropout": 0.1})
    with pytest.raises(ConfigError, match=r"(?s)group_size.*temperature.*weights.*dropout"):
        parts_of(recipe)


class Scripted(Engine):
    """An engine that writes what it is told, turn by turn."""

    def __init__(self, turns: list[str]) -> None:
        self.turns, self.prompts = turns, []

    def stream(self, requests):
        for row, request in enumerate(requests):
            self.prompts.append(bytes(id for id in request.prompt if id < 256).decode())
            text = self.turns.pop(0)
            ids = [*text.encode(), 256]
            end = "end_of_text"
            if request.sampling.stop and text.endswith(request.sampling.stop[0]):
                ids, end = ids[:-1], "stop"
            for place, id in enumerate(ids):
                yield Piece(row, id, "", end if place == len(ids) - 1 else "")


def called(expression: str) -> str:
    wanted = json.dumps({"name": "calculator", "arguments": {"expression": expression}})
    return f"<tool_call>{wanted}</tool_call>"


def test_tool_results_are_read_and_not_learned():
    engine = Scripted([called("6*7"), called("1/0"), "42"])
    answer = Answer(list(b"6*7="), Sampling(max_tokens=400))
    dialect = Dialect(byte_tokenizer(), chat=False)
    with Toolbox(["calculator"]) as tools:
        write(engine, dialect, [answer], 999, tools, max_calls=4)
    learned = bytes(id for id, own in zip(answer.ids, answer.mask, strict=True) if own and id < 256)
    assert learned.decode() == called("6*7") + called("1/0") + "42"
    response = "\n<tool_response>\n42\n</tool_response>\n"
    assert engine.prompts[1] == "6*7=" + called("6*7") + response
    assert "error: division by zero" in engine.prompts[2]
    assert (answer.calls, answer.end) == (2, "end_of_text")
    assert dialect.text(answer.ids[answer.turn :]) == "42"


def test_calls_end_at_max_calls():
    engine = Scripted([called("1+1")] * 3)
    answer = Answer(list(b"?"), Sampling(max_tokens=400))
    with Toolbox(["calculator"]) as tools:
        write(engine, Dialect(byte_tokenizer(), False), [answer], 999, tools, max_calls=2)
    assert answer.calls == 2
    assert answer.mask[-1]


def test_a_chats_tool_turn_is_the_templates():
    tokenizer = train_tokenizer(["some text to learn from"], TokenizerConfig(vocab_size=300))
    dialect = Dialect(tokenizer, chat=True)
    shown = tokenizer.decode(dialect.result("<|im_end|> 42"), specials=True)
    assert shown == (
        "\n<|im_start|>user\n<tool_response>\n<|im_end|> 42\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    end = tokenizer.special_ids["<|im_end|>"]
    assert dialect.result("<|im_end|>").count(end) == 1  # what a tool says stays text
    assert end in dialect.ends
    thinking = Dialect(tokenizer, chat=True, thinking=True).result("42")
    shown = tokenizer.decode(thinking, specials=True)
    assert shown.endswith("<|im_start|>assistant\n<think>\n")
