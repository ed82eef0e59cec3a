"""Stage sft: answers are learned, text is replayed, and a run is the same however it is cut."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparrowlm.checkpoint import RunFolder
from sparrowlm.config import Recipe, TokenizerConfig, dump_recipe
from sparrowlm.errors import ConfigError
from sparrowlm.pipeline import train
from support import Silent, quick, run_ranks, same_results, tiny_recipe, with_model


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch) -> Recipe:
    """Sums as chats, and a page of text to replay."""
    quick(monkeypatch, tmp_path)
    chats, text = tmp_path / "chats.jsonl", tmp_path / "text.txt"
    rows = [
        [
            {"role": "user", "content": f"{a}+{b}?"},
            {"role": "assistant", "content": f"It is {a + b}."},
        ]
        for a in range(10)
        for b in range(8)
    ]
    chats.write_text("".join(json.dumps({"conversations": row}) + "\n" for row in rows), "utf-8")
    text.write_text((json.__doc__ or "") * 4, "utf-8")
    recipe = with_model(tiny_recipe(steps=12), vocab_size=320, max_seq_len=48)
    return replace(
        recipe,
        stage="sft",
        tokenizer=TokenizerConfig(vocab_size=320),
        data=replace(recipe.data, path=(str(chats),), val_fraction=0.2),
        train=replace(recipe.train, seq_len=48, batch_tokens=8 * 48, micro_batch_size=4),
        samples=replace(recipe.samples, every="12 steps", prompts=("1+1?",), max_tokens=8),
    )


def replayed(recipe: Recipe) -> Recipe:
    text = str(Path(recipe.data.path[0]).with_name("text.txt"))
    return replace(recipe, data=replace(recipe.data, replay=(text,), replay_share=0.25))


def rows_of(run: Path, kind: str) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def test_the_held_out_loss_of_answers_falls(recipe: Recipe, tmp_path: Path) -> None:
    longer = replace(recipe, train=replace(recipe.train, length="40 steps"))
    summary = train(longer, tmp_path / "run", Silent())
    assert summary is not None
    losses = [row["val_loss"] for row in rows_of(tmp_path / "run", "eval")]
    assert losses[-1] < losses[0] - 1
    events = [row["message"] for row in rows_of(tmp_path / "run", "event")]
    assert any("padding" in message for message in events)
    sample = json.loads((tmp_path / "run" / "samples.jsonl").read_text("utf-8").splitlines()[-1])
    assert sample["prompt"] == "1+1?"
    assert "<|im_" not in sample["text"]


def test_a_question_that_the_context_does_not_hold_is_told_of_first(recipe, tmp_path) -> None:
    recipe = replace(recipe, samples=replace(recipe.samples, prompts=("1+1?", "1+" * 50)))
    with pytest.raises(ConfigError, match=r"samples\.prompts: '1.*context holds 48"):
        train(recipe, tmp_path / "run", Silent())
    assert not (tmp_path / "run").exists()


def test_a_run_with_replay_resumes_as_if_never_stopped(recipe: Recipe, tmp_path: Path) -> None:
    recipe = replayed(recipe)
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    train(recipe, straight, Silent())
    asked = iter([False] * 5)
    assert train(recipe, stopped, Silent(), should_stop=lambda: next(asked, True)) is None
    train(recipe, stopped, Silent(), resume=True)
    same_results(straight, stopped)
    last = rows_of(straight, "eval")[-1]
    assert last["val_loss"] != last["val_loss/replay"]


@pytest.mark.slow
@pytest.mark.parametrize("replay", [False, True])
def test_two_ranks_equal_one(recipe: Recipe, tmp_path: Path, replay: bool) -> None:
    recipe = replayed(recipe) if replay else recipe
    train_config = replace(recipe.train, precision="float64", micro_batch_size=2)
    path = tmp_path / "recipe.toml"
    path.write_text(dump_recipe(replace(recipe, train=train_config)), encoding="utf-8")
    weights = []
    for ranks in (1, 2):
        run = tmp_path / f"run{ranks}"
        done = run_ranks("train", path, "--out", run, ranks=ranks)
        assert done.returncode == 0, done.stdout + done.stderr
        weights.append(RunFolder(run).load(RunFolder(run).newest()).model)
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=1e-10)
