"""A small real run to test laws on: the bytes of a Python source file as token ids."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sparrowlm.config import (
    EvalConfig,
    ModelConfig,
    OptimConfig,
    Recipe,
    SamplesConfig,
    TrainConfig,
)
from sparrowlm.data.shards import Dataset, open_dataset
from sparrowlm.runtime import Runtime

TINY = ModelConfig(
    vocab_size=256, d_model=32, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=64, max_seq_len=16
)


def byte_dataset(folder: Path) -> Dataset:
    """`argparse`'s source as a headerless train.bin and val.bin of byte values."""
    content = Path(argparse.__file__).read_bytes()
    ids = np.frombuffer(content, dtype=np.uint8).astype("<u2")
    folder.mkdir(parents=True, exist_ok=True)
    cut = len(ids) * 9 // 10
    (folder / "train.bin").write_bytes(ids[:cut].tobytes())
    (folder / "val.bin").write_bytes(ids[cut : cut + 2000].tobytes())
    return open_dataset(folder)


def tiny_recipe(steps: int = 20, micro_batch_size: int = 8, optimizer: str = "adamw") -> Recipe:
    """Eight rows of sixteen tokens a step."""
    return Recipe(
        model=TINY,
        train=TrainConfig(
            length=f"{steps} steps",
            seq_len=16,
            batch_tokens=128,
            micro_batch_size=micro_batch_size,
            precision="float32",
            compile="off",
            device="cpu",
        ),
        optim=OptimConfig(name=optimizer, lr=1e-2, warmup_steps=3),  # pyright: ignore[reportArgumentType]
        eval=EvalConfig(every="10 steps", micro_batch_size=8),
        samples=SamplesConfig(every=""),
    )


def with_model(recipe: Recipe, **changes: object) -> Recipe:
    """The recipe with another shape."""
    return replace(recipe, model=replace(recipe.model, **changes))


def cpu(precision: str = "float32") -> Runtime:
    """This process alone, on the CPU."""
    return Runtime(device=torch.device("cpu"), precision=precision)
