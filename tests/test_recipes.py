"""Every recipe loads, trains when shrunk, and has the parameters that it states."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from sparrowlm.checkpoint import RunFolder
from sparrowlm.config import Recipe, has_stages, load_recipe, resolve_model
from sparrowlm.config.line import dump_stages, load_stages
from sparrowlm.config.units import show_bytes
from sparrowlm.line import run_stages
from sparrowlm.model.count import active_parameters, count_parameters, training_memory
from sparrowlm.pipeline import train
from sparrowlm.train.opening import planned_vocabulary
from stage_support import SEQ_LEN, run, small, write_files
from stage_support import shrunk as from_a_run
from support import TINY, Silent, quick

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
OF_ONE_STAGE = [path for path in RECIPES if not has_stages(path)]
FROM_SCRATCH = [path for path in OF_ONE_STAGE if load_recipe(path).stage == "pretrain"]
# What the others learn from; "": the recipe names its own.
FROM_A_RUN = {
    "sft": "chats", "lora": "chats", "identity-lora": "", "dpo": "pairs", "reward": "pairs",
    "grpo": "prompts", "ppo": "prompts", "tool-use": "prompts", "distill": "text",
}  # fmt: skip
# Exact, and beside it what the source says of itself, to the digits that it says.
PARAMETERS = {
    "quickstart": (1_279_168, "1.3M"),
    "shakespeare-char-cpu": (402_304, ""),
    "shakespeare-char": (10_647_552, "10.6M"),
    "tang-poems": (6_114_688, ""),
    "minimind-26m": (26_878_464, "26.9M"),
    "minimind-64m": (63_912_192, "64M"),
    "minimind-moe": (198_416_640, "198M"),
    "tinystories-15m": (15_191_712, "15M"),
    "pile-13m": (13_092_736, "13.1M"),
    "pile-2b": (2_019_995_648, "2B"),
    "gpt2-124m": (124_439_808, "124M"),
    "shakespeare-bpe": (109_392_384, ""),
    "tinystories": (95_331_840, ""),
}


def shrunk(path: Path, data: Path) -> Recipe:
    """The recipe with everything small, of the same kind: norm, positions, MLP, experts, optimizer
    and schedule stay."""
    recipe = load_recipe(path)
    model = replace(
        recipe.model, vocab_size=320, d_model=24, n_layers=1, n_heads=2, head_dim=0, d_ff=32,
        n_kv_heads=min(1, recipe.model.n_kv_heads), max_seq_len=16,
    )  # fmt: skip
    kind = "chars" if recipe.tokenizer.kind == "chars" else "bytes"
    return replace(
        recipe,
        model=model,
        tokenizer=replace(recipe.tokenizer, kind=kind, path=""),
        data=replace(recipe.data, path=(str(data),), val_fraction=0.2, workers=1),
        train=replace(
            recipe.train, length="6 steps", seq_len=16, batch_tokens=128, micro_batch_size=4,
            device="cpu", precision="float32",
        ),
        optim=replace(recipe.optim, warmup_steps=2),
        eval=replace(recipe.eval, every="6 steps", windows=4),
        samples=replace(recipe.samples, every="6 steps", prompts=("",), max_tokens=4),
        checkpoint=replace(recipe.checkpoint, every="6 steps"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> dict[str, Path]:
    """Part of Python's own documentation as plain text, and as compressed rows."""
    lines = (json.__doc__ or "").splitlines(keepends=True)
    documents = ["".join(lines[start : start + 8]) for start in range(0, len(lines), 8)]
    folder = tmp_path_factory.mktemp("text")
    plain, packed = folder / "plain.txt", folder / "rows.jsonl.zst"
    plain.write_text("".join(lines), encoding="utf-8")
    rows = "".join(json.dumps({"text": text}) + "\n" for text in documents)
    packed.write_bytes(zstandard.compress(rows.encode()))
    return {"plain": plain, "rows": packed}


@pytest.mark.parametrize("path", FROM_SCRATCH, ids=lambda path: path.stem)
def test_every_recipe_trains_when_shrunk(path, texts, tmp_path, monkeypatch) -> None:
    quick(monkeypatch, tmp_path)
    rows = load_recipe(path).data.path and "jsonl" in load_recipe(path).data.path[0]
    recipe = shrunk(path, texts["rows" if rows else "plain"])
    summary = train(recipe, tmp_path / "run", Silent())  # pyright: ignore[reportArgumentType]
    assert summary is not None
    log = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    first = json.loads(log[0])
    assert first["loss"] == pytest.approx(math.log(320), abs=0.15)
    assert ("balance" in first) == bool(recipe.model.n_experts)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Iterator[dict[str, Path]]:
    """Data of every kind, and a run with a vocabulary of chats."""
    folder = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        quick(patch, folder)
        yield write_files(folder)


def test_no_recipe_is_left_out() -> None:
    names = {path.stem for path in OF_ONE_STAGE} - {path.stem for path in FROM_SCRATCH}
    assert names == FROM_A_RUN.keys()
    assert [path.stem for path in RECIPES if has_stages(path)] == ["assistant"]


@pytest.mark.parametrize("name", FROM_A_RUN)
def test_every_recipe_trains_from_a_run_when_shrunk(name, files, tmp_path) -> None:
    recipe = from_a_run(name, files, FROM_A_RUN[name])
    rows = run(recipe, tmp_path / "run")
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 7))
    assert all(math.isfinite(row["loss"]) for row in rows if row["kind"] == "train")
    measured = "val_reward" if recipe.stage in ("grpo", "ppo") else "val_loss"
    assert all(math.isfinite(row[measured]) for row in rows if row["kind"] == "eval")
    assert (tmp_path / "run/adapter/adapter_config.json").is_file() == bool(recipe.lora.rank)
    if recipe.rollout.tools:
        assert all("tool_calls" in row for row in rows if "reward" in row)


def test_the_recipe_of_an_assistant_goes_from_text_to_answers(files, tmp_path) -> None:
    stages = load_stages(ROOT / "recipes" / "assistant.toml")
    assert [stage.name for stage in stages] == ["pretrain", "sft", "dpo"]
    whole = resolve_model(stages[0].recipe.model, stages[0].recipe.tokenizer.vocab_size)
    stated = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert f"`assistant.toml` | {count_parameters(whole).total:,}" in stated
    data = {"pretrain": "text", "sft": "chats", "dpo": "pairs"}
    little = []
    for stage in stages:
        recipe = small(stage.recipe, files[data[stage.name]])
        if not recipe.init.from_:
            recipe = replace(
                recipe,
                model=replace(TINY, vocab_size=0, max_seq_len=SEQ_LEN),
                tokenizer=replace(recipe.tokenizer, vocab_size=320),
            )
        little.append(stage._replace(recipe=recipe))

    def train_it(recipe: Recipe, folder: Path, resume: bool) -> bool:
        run(recipe, folder, resume=resume)
        return False

    assert run_stages(little, tmp_path / "out", train_it)
    told = load_stages(tmp_path / "out" / "stages.toml")
    assert dump_stages(told) == dump_stages(little)
    first, *_, last = (
        RunFolder(tmp_path / "out" / f"{n}-{name}") for n, name in enumerate(data, 1)
    )
    assert first.recipe().model == last.recipe().model
    start = next(row for row in last.rows("metrics.jsonl") if row["kind"] == "train")
    assert start["loss"] == pytest.approx(math.log(2), abs=1e-3)  # the reference is the policy


def vocabulary(recipe: Recipe) -> int:
    """A plan reads no text and takes 128 characters; tiny Shakespeare has 65."""
    return 65 if recipe.tokenizer.kind == "chars" else planned_vocabulary(recipe)


@pytest.mark.parametrize("name", PARAMETERS)
def test_stated_parameters_are_the_models(name: str) -> None:
    path = ROOT / "recipes" / f"{name}.toml"
    recipe = load_recipe(path)
    exact, said = PARAMETERS[name]
    assert count_parameters(resolve_model(recipe.model, vocabulary(recipe))).total == exact
    if said:
        scale = {"M": 1e6, "B": 1e9}[said[-1]]
        digits = len(said[:-1].partition(".")[2])
        assert abs(exact / scale - float(said[:-1])) < 0.55 * 10**-digits
    assert f"{exact:,}" in (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", FROM_SCRATCH, ids=lambda path: path.stem)
def test_stated_memory_is_the_plans(path: Path) -> None:
    recipe = load_recipe(path)
    model = resolve_model(recipe.model, planned_vocabulary(recipe))
    length = recipe.train.seq_len or model.max_seq_len
    rows = recipe.train.micro_batch_size or recipe.train.batch_tokens // length
    planned = training_memory(
        model, 1 if path.stem == "pile-2b" else rows, length, optimizer="adamw", product_bytes=2,
        checkpointing=recipe.train.activation_checkpointing,
    )  # fmt: skip
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    stated = re.search(rf"^\| `{path.name}` \|[^|]+\| ([\d.]+ [MG]B)", page, re.M)
    assert stated is not None
    assert stated[1] == show_bytes(planned.total)


def test_minimind_moe_has_64_million_parameters_at_work() -> None:
    recipe = load_recipe(ROOT / "recipes" / "minimind-moe.toml")
    assert active_parameters(resolve_model(recipe.model)).total == 63_936_768


def test_every_recipe_is_in_the_documentation() -> None:
    told = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert not [path.name for path in RECIPES if f"`{path.name}`" not in told]
