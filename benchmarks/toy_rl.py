"""Toy tasks for reinforcement learning, from a model that guesses to one that knows.

    python benchmarks/toy_rl.py --task addition --stage grpo

A small model of bytes first reads examples of which many are wrong; then a policy gradient, which
sees no answer but only whether one was right, raises its pass rate on prompts that are held out.
Tasks: `addition` of two-digit numbers, `copying` and `sorting` of letters, and `tool`, sums too
large to guess, of which some examples call a calculator. Prints one line of JSON: the pass rates
before and after, answered greedily, and the curve between.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sparrowlm.config import Recipe
from sparrowlm.config.load import recipe_from_dict
from sparrowlm.pipeline import train

TASKS = ("addition", "copying", "sorting", "tool")
CALL = '<tool_call>{{"name": "calculator", "arguments": {{"expression": "{}"}}}}</tool_call>'


class Silent:
    """A display that tells events alone, on standard error."""

    def event(self, message: str) -> None:
        print(message, file=sys.stderr)

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def problem(task: str, random: random.Random) -> tuple[str, str]:
    """A prompt and its right answer."""
    if task in ("addition", "tool"):
        least, most = (10, 99) if task == "addition" else (100, 999)
        left, right = random.randint(least, most), random.randint(least, most)
        return f"{left}+{right}=", str(left + right)
    letters = "".join(random.choice("abcdefgh") for _ in range(6))
    return f"{letters}>", letters if task == "copying" else "".join(sorted(letters))


def wrong(answer: str, random: random.Random) -> str:
    """The answer with one character changed."""
    place = random.randrange(len(answer))
    alphabet = "0123456789" if answer.isdigit() else "abcdefgh"
    return answer[:place] + random.choice(alphabet) + answer[place + 1 :]


def example(task: str, noise: float, random: random.Random) -> str:
    """A document to read: a prompt with an answer, wrong in `noise` of the cases; of task `tool`
    with a call of the calculator as often as it is not wrong."""
    prompt, answer = problem(task, random)
    bad = random.random() < noise
    if task == "tool" and not bad:
        response = f"\n<tool_response>\n{answer}\n</tool_response>\n"
        return prompt + CALL.format(prompt[:-1]) + response + answer
    return prompt + (wrong(answer, random) if bad else answer)


def write_data(folder: Path, task: str, noise: float, examples: int) -> None:
    """examples.jsonl to read and prompts.jsonl to answer."""
    dice = random.Random(1337)
    rows = [{"text": example(task, noise, dice)} for _ in range(examples)]
    asked = dict(problem(task, dice) for _ in range(4000))
    prompts = [{"prompt": prompt, "gold": gold} for prompt, gold in asked.items()]
    for name, lines in (("examples", rows), ("prompts", prompts)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def reading(folder: Path, task: str, steps: int) -> Recipe:
    """Pretraining on the noisy examples."""
    seq_len = 256 if task == "tool" else 64
    return recipe_from_dict({
        "model": {"d_model": 96, "n_layers": 2, "n_heads": 4, "max_seq_len": seq_len},
        "tokenizer": {"kind": "bytes"},
        "data": {"path": [str(folder / "examples.jsonl")], "document_mask": True, "workers": 1},
        "train": {"length": f"{steps} steps", "batch_tokens": 4096},
        "optim": {"warmup_steps": 20},
        "eval": {"every": "500 steps", "windows": 64},
        "samples": {"every": ""},
    })  # fmt: skip


def rewarded(folder: Path, task: str, stage: str, steps: int) -> Recipe:
    """Reinforcement from the model that has read."""
    tool = task == "tool"
    return recipe_from_dict({
        "stage": stage,
        "init": {"from": str(folder / "base")},
        "data": {"path": [str(folder / "prompts.jsonl")]},
        "train": {"length": f"{steps} steps", "batch_tokens": 4096, "micro_batch_size": 64},
        "optim": {
            "name": "adamw", "lr": 3e-4, "warmup_steps": 5, "weight_decay": 0.0, "beta2": 0.99,
        },
        "rollout": {
            "prompts": 16 if tool else 32, "group_size": 8, "steps": 2,
            "max_tokens": 120 if tool else 8, "chat": False,
            "rewards": ["exact_match"], "tools": ["calculator"] if tool else [],
            "max_calls": 1, "eval_prompts": 200,
        },
        "policy": {"loss": "dr_grpo" if stage == "grpo" else "grpo"},
        "eval": {"every": f"{max(1, steps // 10)} steps"},
        "samples": {"every": ""},
        "checkpoint": {"every": f"{steps} steps"},
    })  # fmt: skip


def measured(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=TASKS, default="addition")
    parser.add_argument("--stage", choices=("grpo", "ppo"), default="grpo")
    parser.add_argument("--noise", type=float, default=0.5, help="share of wrong examples")
    parser.add_argument("--examples", type=int, default=40_000)
    parser.add_argument("--reading", type=int, default=600, help="steps on examples")
    parser.add_argument("--steps", type=int, default=200, help="updates of the policy")
    parser.add_argument("--out", type=Path, help="keep both runs here")
    options = parser.parse_args()
    folder = options.out or Path(tempfile.mkdtemp(prefix="sparrow-toy-"))
    folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    if not (folder / "base" / "summary.json").exists():
        write_data(folder, options.task, options.noise, options.examples)
        train(reading(folder, options.task, options.reading), folder / "base", Silent())
    read = time.perf_counter()
    run = folder / options.stage
    train(rewarded(folder, options.task, options.stage, options.steps), run, Silent())
    rows = measured(run)
    curve = [[row["step"], row["val_reward"]] for row in rows if row["kind"] == "eval"]
    rewards = [row["reward"] for row in rows if "reward" in row]
    print(json.dumps({
        "task": options.task, "stage": options.stage, "noise": options.noise,
        "baseline_sampled": round(sum(rewards[:3]) / len(rewards[:3]), 4),
        "final_sampled": round(sum(rewards[-5:]) / len(rewards[-5:]), 4),
        "baseline": curve[0][1], "final": curve[-1][1], "curve": curve,
        "reading_seconds": round(read - began, 1), "seconds": round(time.perf_counter() - read, 1),
        "folder": str(folder),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
