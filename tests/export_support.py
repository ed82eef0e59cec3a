"""Runs to export, made without training: random weights away from where they start."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import torch

from sparrowlm import files
from sparrowlm.checkpoint import Checkpoint, RunFolder, State
from sparrowlm.config import (
    InitConfig,
    LoraConfig,
    ModelConfig,
    Recipe,
    TokenizerConfig,
    dump_recipe,
    resolve_model,
)
from sparrowlm.infer.engine import Engine, Request
from sparrowlm.infer.sampling import Sampling
from sparrowlm.model.transformer import Transformer
from sparrowlm.text.tokenizer import Tokenizer, train_tokenizer
from support import cpu

TEXT = [
    "The sparrow is small, and no organ is missing: 麻雀虽小，五脏俱全。 It sings, it flies.\n",
    "def answer(question):\n    return {'what': question, 'count': 42}\n\n\n",
    "Ein Spatz in der Hand ist besser als die Taube auf dem Dach; he's sure that we'll see.\n",
    "天空中有很多小鸟在飞，麻雀也在其中。1234567890 + 99 = ?\n",
]
TINY = ModelConfig(d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=96, max_seq_len=64)
SHAPES = {
    "qwen3": TINY,
    "qwen3, untied, padded": replace(
        TINY, tie_embeddings=False, vocab_size=448, head_dim=32, rope_theta=5e5
    ),
    "qwen3_moe": replace(TINY, n_experts=5, experts_per_token=2, d_ff=32),
    "llama": replace(TINY, qk_norm=False, rope_theta=3e4, norm_eps=1e-5),
    "llama, biases": replace(TINY, qk_norm=False, bias=True, tie_embeddings=False, head_dim=32),
    "gpt2": replace(
        TINY, norm="layer", positions="learned", mlp="gelu_tanh", qk_norm=False, bias=True,
        n_kv_heads=0, norm_eps=1e-5,
    ),
    "gpt2, no biases": replace(
        TINY, norm="layer", positions="learned", mlp="gelu_tanh", qk_norm=False, n_kv_heads=0,
        tie_embeddings=False, d_ff=80,
    ),
}  # fmt: skip


def bpe(pattern: str = "qwen2", vocab_size: int = 400, texts: list[str] | None = None) -> Tokenizer:
    """A vocabulary of bytes, specials and some merges."""
    config = TokenizerConfig(vocab_size=vocab_size, pattern=pattern)  # pyright: ignore[reportArgumentType]
    return train_tokenizer((texts or TEXT) * 20, config)


def draw(config: ModelConfig, seed: int = 3) -> Transformer:
    """Every parameter away from where it starts, so that a swapped one shows."""
    model = Transformer(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.copy_(drawn + ("norm" in name and name.endswith("weight")))
    return model


def make_run(
    out: Path, config: ModelConfig, tokenizer: Tokenizer | None, recipe: Recipe | None = None
) -> Transformer:
    """A run folder with one checkpoint, and its model."""
    shape = resolve_model(config, tokenizer.vocab_size if tokenizer else 0)
    model, run = draw(shape), RunFolder(out)
    run.create()
    if tokenizer is not None:
        with files.publish(out / "tokenizer") as work:
            tokenizer.save(work)
    files.write_json(out / "machine.json", {"machine": {}, "data": {}})
    run.save(Checkpoint(State(step=1, threads=1), dict(model.state_dict()), {}), keep_last=1)
    recipe = replace(recipe or Recipe(), model=shape)
    files.write_text(out / "config.toml", dump_recipe(recipe))
    return model


def make_lora_run(out: Path, base: Path, tokenizer: Tokenizer) -> None:
    """A run of changes to the queries and outputs of a run of `TINY`."""
    recipe = Recipe(
        lora=LoraConfig(rank=2, alpha=8.0, targets=("q", "o")), init=InitConfig(str(base))
    )
    weights = dict(make_run(out, TINY, tokenizer, recipe).state_dict())
    run, generator = RunFolder(out), torch.Generator().manual_seed(6)
    changes = {}
    for product in ("blocks.0.attention.q", "blocks.0.attention.o", "blocks.1.attention.q"):
        rows, columns = weights[f"{product}.weight"].shape
        changes[f"{product}.lora_a"] = torch.randn(2, columns, generator=generator)
        changes[f"{product}.lora_b"] = torch.randn(rows, 2, generator=generator)
    run.save_base(weights, str(base))
    run.save(Checkpoint(State(step=1, threads=1), changes, {}), keep_last=1)


@torch.no_grad()
def logits(model: Transformer, ids: torch.Tensor) -> torch.Tensor:
    return model.logits(model(ids).hidden)


def greedy(model: Transformer, prompt: list[int], count: int = 24) -> list[int]:
    """What our engine writes, ends passed over."""
    pieces = Engine(model, None, cpu()).stream(
        [Request(prompt, Sampling(temperature=0.0, max_tokens=count))]
    )
    return [piece.token for piece in pieces]


SCRAPS = [
    "hello", "World", "it's", "WE'LL", "'RE", "  ", "    ", "\n", "\r\n", "\n\n\n", "\t", " \n ",
    "\u00a0", "\u3000", "\u2028", "\u200b", "\ufeff", "0", "12", "3456", "7890123", "٣٤", "½", "²",
    "你好", "麻雀虽小", "，五脏俱全。", "こんにちは", "カタカナ", "한국어", "Привет", "ελληνικά",
    "עברית", "العربية", "हिन्दी", "ไทย", "é", "e\u0301", "ﬁ", "Å", "ß", "ı", "İ", "👍", "👩‍👩‍👧‍👦",
    "🇨🇳", "𝕏", "𠮷",
    "<|im_end|>", "<|im_start|>system\n", "<|endoftext|>", "<think>", "</think>", "<tool_call>",
    "<|spare_0|>", "<0x0A>", "[PAD401]", "▁", "Ġ", "Ċ", "a" * 40, "!" * 17, "...", "?!", "——", "…",
    "def f(x):\n    return x+1", "{'a': [1, 2.5e-3]}", "https://a.b/c?d=e&f#g", "\\n", "\"", "'",
    "\x00", "\x1b[2J", "\x7f", "\x85", "a b  c   d", "x\ty", "I'm", "I’m", "don't'll", "中a文b",
]  # fmt: skip


def hostile_texts(count: int = 600, seed: int = 5) -> list[str]:
    """Mixed languages, white space of every kind, digits, emoji, names of specials."""
    draw = random.Random(seed)
    texts = ["".join(draw.choices(SCRAPS, k=draw.randint(1, 12))) for _ in range(count * 3 // 4)]
    planes = [(0x20, 0x7F), (0x80, 0x24F), (0x2000, 0x206F), (0x4E00, 0x9FFF), (0x1F300, 0x1FAFF)]
    while len(texts) < count:
        low, high = draw.choice(planes)
        texts.append("".join(chr(draw.randint(low, high)) for _ in range(draw.randint(1, 30))))
    return texts
