"""What the stages after pretraining start from: a run with a vocabulary of chats, and small data
of every kind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sparrowlm.checkpoint import RunFolder, find_run
from sparrowlm.config import Recipe, TokenizerConfig, load_recipe
from sparrowlm.pipeline import train
from support import TINY, Silent, tiny_recipe

RECIPES = Path(__file__).parents[1] / "recipes"
SEQ_LEN = 96
WITH_TOOLS = 768  # tokens of a row: a system turn that describes them is long in 320 entries


def write_files(folder: Path) -> dict[str, Path]:
    """Text, chats, pairs, labelled completions, prompts, and a run on the text."""
    draw = np.random.default_rng(0)
    rows: dict[str, list[dict[str, Any]]] = {}
    for _ in range(80):
        a, b = (int(number) for number in draw.integers(1, 50, 2))
        turn = {"role": "user", "content": f"{a}+{b}"}
        said = f"{a + b}.", f"No idea {a}"
        sides = [[turn, {"role": "assistant", "content": one}] for one in said]
        rows.setdefault("chats", []).append({"messages": sides[0]})
        rows.setdefault("pairs", []).append({"chosen": sides[0], "rejected": sides[1]})
        rows.setdefault("prompts", []).append({"prompt": f"{a}+{b}", "gold": str(a + b)})
        rows.setdefault("labelled", []).extend(
            {"prompt": f"{a}+{b}", "completion": one, "label": one == said[0]} for one in said
        )
    found = {name: folder / f"{name}.jsonl" for name in rows}
    for name, lines in rows.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        found[name].write_text(text, encoding="utf-8")
    found |= {"text": folder / "text.txt", "base": folder / "base"}
    found["text"].write_text((json.__doc__ or "") * 3, encoding="utf-8")
    recipe = replace(
        small(Recipe(), found["text"]),
        model=replace(TINY, vocab_size=0, max_seq_len=WITH_TOOLS),
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=320),
    )
    run(recipe, found["base"])
    return found


def small(recipe: Recipe, data: Path, steps: int = 6) -> Recipe:
    """The recipe on other data, shrunk; its stage, objective and optimizer stay."""
    tiny, tools = tiny_recipe(steps), bool(recipe.rollout.tools)
    seq_len = WITH_TOOLS if tools else SEQ_LEN
    return replace(
        recipe,
        data=replace(recipe.data, path=(str(data),), val_fraction=0.2, workers=1),
        train=replace(
            tiny.train, seq_len=seq_len, batch_tokens=4 * seq_len, micro_batch_size=2
        ),
        optim=replace(recipe.optim, warmup_steps=2),
        rollout=replace(
            recipe.rollout, prompts=2, group_size=min(2, recipe.rollout.group_size),
            max_tokens=8, eval_prompts=2,
        ),
        eval=replace(recipe.eval, every="3 steps", windows=0),
        samples=replace(recipe.samples, every=""),
        checkpoint=replace(recipe.checkpoint, every="3 steps", keep_last=9),
    )  # fmt: skip


def shrunk(name: str, files: dict[str, Path], data: str = "", **changes: Any) -> Recipe:
    """A recipe that Sparrow brings, shrunk and from the small run.

    Args:
        name: of the recipe.
        files: of `write_files`.
        data: which of them it learns from; "": what the recipe itself names.
        changes: tables, and in them the settings to change.
    """
    recipe = load_recipe(RECIPES / f"{name}.toml")
    own = RECIPES.parent / recipe.data.path[0]
    recipe = small(recipe, files[data] if data else own)
    if recipe.stage == "distill":
        model = replace(TINY, vocab_size=0, d_model=16, d_ff=32, max_seq_len=SEQ_LEN)
        teacher = replace(recipe.distill, teacher=str(files["base"]))
        recipe = replace(recipe, model=model, distill=teacher)
    else:
        recipe = replace(recipe, init=replace(recipe.init, from_=str(files["base"])))
    for table, settings in changes.items():
        recipe = replace(recipe, **{table: replace(getattr(recipe, table), **settings)})
    return recipe


def run(recipe: Recipe, out: Path, **options: Any) -> list[dict[str, Any]]:
    """Train; returns the rows of the log but for events."""
    train(recipe, out, Silent(), **options)  # pyright: ignore[reportArgumentType]
    return [row for row in RunFolder(out).rows("metrics.jsonl") if row["kind"] != "event"]


def only_adapters_moved(out: Path, base: Path) -> None:
    """Assert that a run with adapters has trained these, beside the weights of `base`."""
    folder, (origin, step) = RunFolder(out), find_run(base)
    changes = folder.load(folder.newest()).model
    assert all(name.endswith(("lora_a", "lora_b")) for name in changes)
    assert any(value.any() for name, value in changes.items() if name.endswith("lora_b"))
    kept, wanted = folder.load_base(), origin.weights(step)
    assert all(np.array_equal(kept[name], wanted[name]) for name in wanted)
