"""Toy tasks for reinforcement learning, from a model that guesses to one that knows.

    python benchmarks/toy_rl.py --task addition --out runs/toy/addition
    python benchmarks/toy_rl.py --task addition --stage ppo --out runs/toy/addition
    python benchmarks/toy_rl.py --draw toys.svg runs/toy/*/*.json

A model of a million parameters first reads examples for a short while, most of which make the
same mistake; then a policy gradient, which sees no answer but only whether one was right, raises
its pass rate on prompts that are held out. Tasks: `addition` of two-digit numbers, where most
examples forget to carry; `copying` and `sorting` of letters, where most end with the last two
swapped; and `tool`, products of three digits, where most guess and the others call a calculator.

Prints one line of JSON, the pass rates of answers written greedily before, between and after, and
keeps it in STAGE.json of the folder, beside a picture; `--draw` puts several of these into one.
Minutes are of the processor's work, whatever else the machine does.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from sparrowlm.config import Recipe
from sparrowlm.config.load import recipe_from_dict
from sparrowlm.pipeline import train

CALL = '<tool_call>{{"name": "calculator", "arguments": {{"expression": "{}"}}}}</tool_call>'
SHAPE = {"d_model": 192, "n_layers": 2, "n_heads": 6}
MEASURED = 400  # held-out prompts, at most


class Setting(NamedTuple):
    """How a task is first read and then learned."""

    reading: int
    """Steps on examples."""
    habit: float
    """Share of the examples that make the mistake."""
    updates: int
    """Of the policy."""
    lr: float = 1e-3
    prompts: int = 32
    """Of a rollout."""
    group: int = 8
    """Completions of each; 1 for ppo, with as many prompts more."""
    max_tokens: int = 8
    seq_len: int = 64
    batch_tokens: int = 2048
    """Of a step on examples."""


TASKS = {
    "addition": Setting(reading=400, habit=0.7, updates=200),
    "copying": Setting(reading=250, habit=0.7, updates=100),
    "sorting": Setting(reading=400, habit=0.7, updates=200, lr=3e-4),
    "tool": Setting(
        reading=800, habit=0.6, updates=40, lr=2e-4, prompts=16, max_tokens=120, seq_len=256
    ),
}  # fmt: skip


class Silent:
    """A display that tells events alone, on standard error."""

    def event(self, message: str) -> None:
        print(message, file=sys.stderr)

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def problem(task: str, random: random.Random) -> tuple[str, str]:
    """A prompt and its right answer."""
    if task == "addition":
        left, right = random.randint(10, 99), random.randint(10, 99)
        return f"{left}+{right}=", str(left + right)
    if task == "tool":
        left, right = random.randint(100, 999), random.randint(100, 999)
        return f"{left}*{right}=", str(left * right)
    letters = "".join(random.choice("abcdefgh") for _ in range(6))
    return f"{letters}>", letters if task == "copying" else "".join(sorted(letters))


def mistaken(task: str, prompt: str, answer: str, random: random.Random) -> str:
    """The answer with the mistake of its task, which now and then leaves it right."""
    if task == "addition":
        left, right = map(int, prompt.rstrip("=").split("+"))
        return f"{left // 10 + right // 10}{(left + right) % 10}"
    if task == "tool":
        place = random.randrange(len(answer))
        return answer[:place] + random.choice("0123456789") + answer[place + 1 :]
    return answer[:-2] + answer[:-3:-1]


def example(task: str, habit: float, random: random.Random) -> str:
    """A document to read: a prompt with an answer, mistaken in `habit` of the cases; of task `tool`
    with a call of the calculator in the others."""
    prompt, answer = problem(task, random)
    if random.random() < habit:
        return prompt + mistaken(task, prompt, answer, random)
    if task == "tool":
        response = f"\n<tool_response>\n{answer}\n</tool_response>\n"
        return prompt + CALL.format(prompt[:-1]) + response + answer
    return prompt + answer


def write_data(folder: Path, task: str, habit: float, examples: int = 40_000) -> None:
    """examples.jsonl to read and prompts.jsonl to answer."""
    dice = random.Random(1337)
    rows = [{"text": example(task, habit, dice)} for _ in range(examples)]
    asked = dict(problem(task, dice) for _ in range(4000))
    prompts = [{"prompt": prompt, "gold": gold} for prompt, gold in asked.items()]
    for name, lines in (("examples", rows), ("prompts", prompts)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def reading(folder: Path, setting: Setting) -> Recipe:
    """Pretraining on the examples."""
    return recipe_from_dict({
        "model": {**SHAPE, "max_seq_len": setting.seq_len},
        "tokenizer": {"kind": "bytes"},
        "data": {"path": [str(folder / "examples.jsonl")], "document_mask": True, "workers": 1},
        "train": {
            "length": f"{setting.reading} steps", "batch_tokens": setting.batch_tokens,
        },
        "optim": {"warmup_steps": 20},
        "eval": {"every": "500 steps", "windows": 64},
        "samples": {"every": ""},
    })  # fmt: skip


def rewarded(folder: Path, task: str, stage: str, setting: Setting) -> Recipe:
    """Reinforcement from the model that has read."""
    grouped = stage == "grpo"
    return recipe_from_dict({
        "stage": stage,
        "init": {"from": str(folder / "base")},
        "data": {"path": [str(folder / "prompts.jsonl")]},
        "train": {
            "length": f"{setting.updates} steps", "batch_tokens": 4096, "micro_batch_size": 64,
        },
        "optim": {
            "name": "adamw", "lr": setting.lr, "warmup_steps": 5, "weight_decay": 0.0,
            "beta2": 0.99,
        },
        "rollout": {
            "prompts": setting.prompts * (1 if grouped else setting.group),
            "group_size": setting.group if grouped else 1,
            "steps": 2, "max_tokens": setting.max_tokens, "chat": False,
            "rewards": ["exact_match"], "tools": ["calculator"] if task == "tool" else [],
            "max_calls": 1, "eval_prompts": MEASURED,
        },
        "policy": {"loss": "dr_grpo" if grouped else "grpo"},
        "eval": {"every": f"{max(1, setting.updates // 10)} steps"},
        "samples": {"every": ""},
        "checkpoint": {"every": f"{setting.updates} steps"},
    })  # fmt: skip


def learned(folder: Path, task: str, stage: str, setting: Setting) -> dict[str, Any]:
    """Read, where that was not done yet, and learn; what came of it."""
    began = time.process_time()
    if not (folder / "base" / "summary.json").exists():
        write_data(folder, task, setting.habit)
        train(reading(folder, setting), folder / "base", Silent())
    read, run = time.process_time(), folder / stage
    train(rewarded(folder, task, stage, setting), run, Silent())
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    curve = [[row["step"], row["val_reward"]] for row in rows if row["kind"] == "eval"]
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return {
        "task": task, "stage": stage, "parameters": summary["parameters"],
        "reading": setting.reading, "habit": setting.habit, "updates": setting.updates,
        "completions": setting.prompts * setting.group * setting.updates // 2,
        "before": curve[0][1], "after": curve[-1][1],
        "minutes_reading": round((read - began) / 60, 2),
        "minutes": round((time.process_time() - read) / 60, 2), "curve": curve,
        "sampled": [[row["step"], round(row["reward"], 4)] for row in rows if "reward" in row],
    }  # fmt: skip


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Pass rates over updates, each with its name at the end of its line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    for result in results:
        steps, rates = zip(*result["curve"], strict=True)
        name = f"{result['task']}, {result['stage']}"
        axes.plot(steps, rates, marker="o", markersize=3, label=name)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("updates of the policy")
    axes.set_ylabel("held-out answers that are right")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=TASKS, default="addition")
    parser.add_argument("--stage", choices=("grpo", "ppo"), default="grpo")
    for name, kind in get_type_hints(Setting).items():
        parser.add_argument(f"--{name}", type=kind, help="default: what suits the task")
    parser.add_argument("--out", type=Path, help="keep both runs here")
    parser.add_argument("--draw", nargs="+", type=Path, metavar=("PICTURE", "JSON"))
    options = parser.parse_args()
    if options.draw:
        picture, *files = options.draw
        draw([json.loads(file.read_text(encoding="utf-8")) for file in files], picture)
        return
    given = {name: getattr(options, name) for name in Setting._fields}
    changed = {name: value for name, value in given.items() if value is not None}
    folder = options.out or Path(tempfile.mkdtemp(prefix="sparrow-toy-"))
    folder.mkdir(parents=True, exist_ok=True)
    setting = TASKS[options.task]._replace(**changed)
    result = learned(folder, options.task, options.stage, setting)
    text = json.dumps(result)
    (folder / f"{options.stage}.json").write_text(text + "\n", encoding="utf-8")
    draw([result], folder / f"{options.stage}.svg")
    print(text)


if __name__ == "__main__":
    main()
