"""A few steps of each pretraining recipe in its full shape: speed, memory, and what all would take.

    python benchmarks/recipes.py --data tinyshakespeare.txt --gpt2 tokenizers/gpt2 \\
        --folder tokenizers/minimind-3

Each recipe is run by `sparrow train` as a whole command, with its own model, optimizer, row length
and micro-batch, on the text that is given, with steps of one micro-batch: a micro-step costs what
it costs in the recipe, and the optimizer's step, which the recipe shares among several, makes the
speed a lower bound. Where a recipe names no micro-batch, a step has all its rows, in micro-batches
of the plan's choice. A tokenizer from another folder may be smaller than the recipe's; the table of
the model stays as large as the recipe says.

- tokens a second: the median over the steps after the first two;
- peak: of the process in main memory, its libraries included, beside what `sparrow plan` says
  that a step holds;
- hours: of the whole recipe at that speed, where its length is told in steps;
- loss: of the first step and of the last, nats per token. That it falls is all it says.

Nothing else should run. Prints a JSON line for each recipe, and its machine in the last.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from sparrowlm.config import Recipe, load_recipe
from sparrowlm.runtime import machine
from sparrowlm.train.build import length_of

RECIPES = Path(__file__).parents[1] / "recipes"
NAMES = [
    "pile-13m", "shakespeare-char", "tinystories-15m", "minimind-26m", "minimind-64m",
    "tinystories", "shakespeare-bpe", "gpt2-124m", "minimind-moe",
]  # fmt: skip
WARM = 2  # steps that are not counted


def main() -> None:
    """Run each recipe and print its JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="text of a megabyte or more")
    parser.add_argument("--gpt2", type=Path, required=True, help="GPT-2's tiktoken cache")
    parser.add_argument("--folder", type=Path, required=True, help="a folder with tokenizer.json")
    parser.add_argument("--recipe", action="append", help="of these alone; may be given again")
    parser.add_argument("--steps", type=int, default=6, help=f"the first {WARM} are not counted")
    options = parser.parse_args()
    for name in options.recipe or NAMES:
        print(json.dumps({"recipe": name, **measure(name, options)}), flush=True)
    print(json.dumps({"steps": options.steps, "data": options.data.name, **machine()}))


def measure(name: str, options: argparse.Namespace) -> dict[str, float | str | None]:
    """Train a recipe for a few steps in a process of its own."""
    recipe = load_recipe(RECIPES / f"{name}.toml")
    length = recipe.train.seq_len or recipe.model.max_seq_len
    rows = recipe.train.micro_batch_size or recipe.train.batch_tokens // length
    tokenizers = {"chars": "", "gpt2": options.gpt2}
    changed = {
        "data.path": options.data, "data.split": "tail", "data.val_fraction": 0.1,
        "tokenizer.path": tokenizers.get(recipe.tokenizer.kind, options.folder),
        "train.batch_tokens": rows * length,
        "train.length": f"{options.steps} steps", "eval.every": f"{options.steps} steps",
        "eval.windows": 4, "samples.every": "1000 steps", "checkpoint.every": "1000 steps",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, "-m", "sparrowlm", "train", str(RECIPES / f"{name}.toml")]
        for key, value in changed.items():
            command += [f"--{key}", str(value)]
        done = subprocess.run(
            [*command, "--out", f"{work}/run"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{name}: {done.stdout}{done.stderr}")
        lines = Path(work, "run", "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    told = [row for row in map(json.loads, lines) if row["kind"] == "train"]
    planned = re.search(r"needs about ([\d.]+ \w+)", done.stdout)
    speed = statistics.median(row["tokens_per_second"] for row in told[WARM:])
    return {
        "rows": rows,
        "row_tokens": length,
        "tokens_per_second": round(speed),
        "planned": planned[1] if planned else "",
        "peak_gb": round(told[-1]["memory_bytes"] / 1e9, 2),
        "hours": round(tokens / speed / 3600, 1) if (tokens := tokens_of(recipe)) else None,
        "first_loss": round(told[0]["loss"], 3),
        "last_loss": round(told[-1]["loss"], 3),
    }


def tokens_of(recipe: Recipe) -> int:
    """That the whole recipe goes through; 0 where only its data can tell."""
    span = length_of(recipe)
    return round(span.amount) * recipe.train.batch_tokens if span.unit == "steps" else 0


if __name__ == "__main__":
    main()
