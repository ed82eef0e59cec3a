"""The toy tasks of benchmarks/toy_rl.py, of which docs/toy-tasks.md tells."""

from __future__ import annotations

import importlib.util
import json
import math
import random
import sys
from pathlib import Path

import pytest

from sparrowlm.config.rollout import check_rollout
from support import quick

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("toy_rl", ROOT / "benchmarks" / "toy_rl.py")
assert _spec is not None
assert _spec.loader is not None
toys = importlib.util.module_from_spec(_spec)
sys.modules["toy_rl"] = toys  # where its classes look for their own names
_spec.loader.exec_module(toys)


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
@pytest.mark.parametrize("task", toys.TASKS)
def test_recipes_of_toy_tasks_hold(task, stage, tmp_path):
    setting = toys.TASKS[task]
    check_rollout(toys.rewarded(tmp_path, task, stage, setting))
    assert toys.reading(tmp_path, setting).train.batch_tokens == setting.batch_tokens


@pytest.mark.parametrize(
    ("task", "prompt", "answer", "mistake"),
    [
        ("addition", "34+57=", "91", "81"),
        ("addition", "34+51=", "85", "85"),
        ("addition", "99+99=", "198", "188"),
        ("copying", "gacbah>", "gacbah", "gacbha"),
        ("sorting", "gacbah>", "aabcgh", "aabchg"),
    ],
)
def test_mistakes_are_those_that_the_page_tells(task, prompt, answer, mistake):
    assert toys.mistaken(task, prompt, answer, random.Random(0)) == mistake


def test_an_example_calls_the_calculator_or_guesses():
    dice = random.Random(0)
    found = [toys.example("tool", 0.5, dice) for _ in range(200)]
    calls = [one for one in found if "<tool_call>" in one]
    assert 70 < len(calls) < 130
    for one in calls:
        asked, answer = one.split("=")[0], one.split("\n")[-1]
        assert math.prod(map(int, asked.split("*"))) == int(answer)
        assert f'"expression": "{asked}"' in one


@pytest.mark.slow
@pytest.mark.parametrize("task", ["copying", "tool"])
def test_a_toy_task_runs_when_shrunk(task, tmp_path, monkeypatch):
    quick(monkeypatch, tmp_path)
    monkeypatch.setattr(toys, "SHAPE", {"d_model": 16, "n_layers": 1, "n_heads": 2})
    monkeypatch.setattr(toys, "MEASURED", 2)
    setting = toys.TASKS[task]._replace(reading=2, updates=2, prompts=2, group=2, max_tokens=4)
    for stage in ("grpo", "ppo"):
        result = toys.learned(tmp_path, task, stage, setting)
        assert [step for step, _ in result["curve"]] == [0, 1, 2]
        assert json.loads(json.dumps(result)) == result
    toys.draw([result], tmp_path / "curve.svg")
    assert (tmp_path / "curve.svg").stat().st_size > 1000
