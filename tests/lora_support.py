"""A small base run that can write, and LoRA runs on it."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sparrowlm.config import (
    DataConfig,
    InitConfig,
    LoraConfig,
    ModelConfig,
    Recipe,
    TokenizerConfig,
)
from sparrowlm.pipeline import train
from support import TINY, Silent, tiny_recipe

LORA = LoraConfig(rank=2, alpha=8.0)


def text_recipe(folder: Path, steps: int = 6, **model: object) -> Recipe:
    """Bytes of a Python source as text, under the tokenizer of bytes."""
    source = folder / "source.txt"
    if not source.exists():
        folder.mkdir(parents=True, exist_ok=True)
        text = Path(argparse.__file__).read_text(encoding="utf-8")
        source.write_text(text[:12_000], encoding="utf-8")
    data = DataConfig(path=(str(source),), split="tail", workers=1)
    recipe = replace(tiny_recipe(steps), data=data, tokenizer=TokenizerConfig(kind="bytes"))
    return replace(recipe, model=replace(TINY, vocab_size=264, **model))


def lora_recipe(recipe: Recipe, base: Path, lora: LoraConfig = LORA) -> Recipe:
    """The same data, with changes beside the weights of `base`, whose shape is taken over."""
    return replace(
        recipe,
        model=ModelConfig(),
        tokenizer=TokenizerConfig(),
        init=InitConfig(str(base)),
        lora=lora,
        optim=replace(recipe.optim, lr=3e-2),
    )


def run(recipe: Recipe, out: Path, **options: Any) -> tuple[dict[str, Any] | None, list[str]]:
    """Train; returns the summary and what was told."""
    display = Silent()
    return train(recipe, out, display, **options), display.events  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def logits(model: torch.nn.Module, vocab_size: int = 256) -> torch.Tensor:
    """(3, 12, V) of fixed tokens."""
    tokens = torch.randint(0, vocab_size, (3, 12), generator=torch.Generator().manual_seed(4))
    return model.logits(model(tokens).hidden)
