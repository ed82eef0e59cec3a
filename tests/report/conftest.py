"""A run that never was, but could have been: three minutes of the quickstart on two cores."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparrowlm.config import ModelConfig, OptimConfig, Recipe, SamplesConfig, TrainConfig
from sparrowlm.config.load import dump_recipe

SUMMARY = {
    "steps": 640,
    "tokens": 640 * 6144,
    "parameters": 4_237_568,
    "train_loss": 2.742,
    "val_loss": 3.056,
    "val_bits_per_byte": 1.402,
    "gzip_bits_per_byte": 1.910,
    "xz_bits_per_byte": 1.481,
    "xz_primed_bits_per_byte": 1.352,
    "wall_seconds": 182.4,
    "tokens_per_second": 21_840.0,
    "mfu": 0.634,
    "peak_memory_bytes": 1_264_000_000,
}
MACHINE = {
    "machine": {
        "system": "Linux x86_64",
        "processor": "AMD EPYC 9R14 96-Core Processor",
        "threads": 2,
        "python": "3.13.1",
        "torch": "2.15.0+cpu",
    },
    "data": {
        "corpus": "the standard library of Python 3.13.1",
        "sources": [f"Lib/{name}.py" for name in ("abc", "argparse", "ast", "asyncio/base")] * 4,
        "splits": {
            "train": {"documents": 1021, "bytes": 9_106_230, "tokens": 2_388_172},
            "val": {"documents": 118, "bytes": 1_021_775, "tokens": 270_113},
        },
        "dtype": "uint16",
    },
}
TEXTS = [
    "e t\n  \x00tr�\t,n a_ i\x1b[31m(t)  sse\n\n ao=e.rf   'd lt",
    " self the return) name\n    def in self, is self.self(self)\n    if the value:\n",
    "(self):\n        if self.name is None:\n            return self.name\n        self.name =\n",
    """(self, name, value):
    '''Return the value of the name.'''
    if value is None:
        raise TypeError("value must be a string, not %s" % type(name))
    return value
""",
    """(path, mode="r", encoding=None):
    '''Read a file and return its lines.

    If *encoding* is not given, the default encoding is used.
    '''
    with open(path, mode, encoding=encoding) as file:
        lines = []
        for line in file:
            if not line.startswith("#"):
                lines.append(line.rstrip())
    return lines
""",
]


def train_rows(steps: int) -> list[dict[str, Any]]:
    """A power-law fall with noise, warm-up, a cosine and a little of what machines do."""
    noise = random.Random(7)
    rows = []
    for step in range(1, steps + 1):
        share = step / steps
        loss = 2.75 + 6.0 * (1 + step / 4) ** -0.62 - 0.3 * share**3 + noise.gauss(0, 0.07)
        lr = 3e-3 * min(step / 60, 0.55 + 0.45 * math.cos(math.pi * share))
        norm = 0.35 + 2.2 * math.exp(-step / 25) + abs(noise.gauss(0, 0.05))
        rate = 21_900 * (0.55 if step < 4 else 1) * (1 + noise.gauss(0, 0.015))
        rows.append(
            {
                "kind": "train",
                "step": step,
                "loss": loss,
                "bits_per_byte": loss / 2.4,
                "lr": lr,
                "grad_norm": norm * (9 if step == steps // 3 else 1),
                "tokens": step * 6144,
                "seconds": step * 180 / steps,
                "tokens_per_second": rate,
                "mfu": rate / 34_500,
                "memory_bytes": 1_264_000_000,
                "skipped": int(step > steps // 3),
            }
        )
    return rows


def eval_rows(steps: int, every: int) -> list[dict[str, Any]]:
    rows = []
    for step in [*range(every, steps, every), steps]:
        loss = 3.1 + 6.0 * (1 + step / 4) ** -0.62 - 0.3 * (step / steps) ** 3
        rows.append(
            {
                "kind": "eval",
                "step": step,
                "val_loss": loss,
                "val_bits_per_byte": loss / 2.18,
                "tokens": 270_112,
                "seconds": step * 180 / steps,
            }
        )
    return rows


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """Write a plausible run folder: `make_run(folder, steps=640, **parts_to_replace)`."""

    def make(folder: Path, steps: int = 640, every: int = 50, **parts: Any) -> Path:
        folder.mkdir(parents=True)
        recipe = Recipe(
            model=ModelConfig(
                vocab_size=4096,
                d_model=256,
                n_heads=4,
                n_kv_heads=2,
                head_dim=64,
                d_ff=704,
                mlp="relu2",
            ),
            train=TrainConfig(length="3 minutes", batch_tokens=6144, micro_batch_size=12),
            optim=OptimConfig(schedule="wsd", muon_lr=0.03),
            samples=SamplesConfig(every="20 seconds", prompts=("def read_lines", "class ")),
        )
        (folder / "config.toml").write_text(dump_recipe(recipe), encoding="utf-8")
        for name, value in (("summary", SUMMARY), ("machine", MACHINE)):
            value = parts.get(name, value)
            (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
        events = [
            (1, 0.2, "compiled the step in 11 s"),
            (steps // 3, 60.1, "step not applied: the gradient is not finite"),
            (int(steps * 0.7), 126.0, f"cooldown from step {int(steps * 0.7)} to step {steps}"),
        ]
        rows = train_rows(steps) + eval_rows(steps, every)
        rows += [
            {"kind": "event", "step": step, "seconds": at, "message": text}
            for step, at, text in events
        ]
        rows.sort(key=lambda row: row["step"])
        write_lines(folder / "metrics.jsonl", parts.get("metrics", rows))
        samples = [
            {"step": step, "prompt": prompt, "text": text, "seconds": step * 180 / steps}
            for step, text in zip(
                [1, steps // 10, steps // 4, steps // 2, steps], TEXTS, strict=True
            )
            for prompt in ("def read_lines", "class ")[: 1 + (step == steps)]
        ]
        write_lines(folder / "samples.jsonl", parts.get("samples", samples))
        return folder

    return make
