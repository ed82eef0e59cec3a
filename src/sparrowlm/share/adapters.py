"""Adapters beside their base: PEFT's files, read and written, and merging into plain weights.

adapter/
  adapter_config.json  adapter_model.safetensors    as PEFT reads them on an exported model
  base.json                                         whose changes they are
  manifest.json
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from sparrowlm import files
from sparrowlm.checkpoint import (
    Checkpoint,
    RunFolder,
    State,
    find_run,
    fingerprint,
    save_tensors,
)
from sparrowlm.config import (
    InitConfig,
    LoraConfig,
    ModelConfig,
    Recipe,
    TokenizerConfig,
    dump_recipe,
    lora_targets,
)
from sparrowlm.errors import RunError
from sparrowlm.model.lora import ADAPTERS, Change, changes_of, merge
from sparrowlm.runtime import machine
from sparrowlm.share.huggingface import LLAMA, named_there
from sparrowlm.share.opening import read_safetensors, rename
from sparrowlm.text.tokenizer import load_tokenizer

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"
ROOT = "base_model.model."  # PEFT's wrapper around the model
ENDS = dict(zip((".lora_A", ".lora_B"), ADAPTERS, strict=True))


class Adapter(NamedTuple):
    """Changes that belong beside some base."""

    path: Path
    changes: dict[str, Change]
    """By our name of the product."""
    base: dict[str, str]
    """The base's `fingerprint` and where it was found, `from`; empty in a foreign adapter."""


def read_adapter(path: Path) -> Adapter:
    """The changes in a LoRA run or one of its checkpoints, or in a folder of PEFT's.

    Raises:
        RunError: none of these, or changes of a kind that is not a plain low-rank one.
    """
    if is_peft(path):
        return _read_peft(path)
    run, step = find_run(path)
    lora = run.recipe().lora
    if not lora.rank:
        raise RunError(
            "is a run of all weights, and holds no adapter",
            where=str(path),
            fix=f"give a run with lora.rank, or a folder with {CONFIG}; to write from this run,"
            f" sparrow generate {path}",
        )
    return Adapter(path, changes_of(run.load(step).model, lora.alpha), run.base_facts())


def is_peft(path: Path) -> bool:
    """Whether a folder is one that PEFT reads."""
    return (path / CONFIG).is_file()


def with_adapter(weights: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The weights of a plain model with an adapter merged into them.

    Args:
        weights: of the base.
        path: as of `read_adapter`.

    Raises:
        RunError: the adapter was made for another base.
    """
    adapter = read_adapter(path)
    try:
        merged = merge(weights, adapter.changes)
    except RunError as fault:
        raise RunError(fault.what, where=str(path), why="it was made for another base") from fault
    made_for = adapter.base.get("fingerprint")
    if made_for and made_for != (own := fingerprint(weights)):
        raise RunError(
            f"was made for another base (fingerprint {made_for[:12]}, of this one {own[:12]})",
            where=str(path),
            why="changes of one model's weights mean nothing to another's",
            fix=f"give the base it was made for, {adapter.base.get('from', 'wherever that is')}",
        )
    return merged


def keep_adapter(run: RunFolder) -> list[str]:
    """Write `adapter/` into a LoRA run, at its best step.

    Returns:
        What a person should hear of.
    """
    try:
        write_adapter(run, run.best(), run.path / "adapter", replace=True)
    except RunError as fault:
        return [f"no adapter/ was written: {fault.what}; {fault.fix}"]
    return []


def extract_adapter(path: Path, out: Path) -> int:
    """Write the changes of a LoRA run, or of one of its checkpoints, as PEFT reads them.

    Returns:
        The step that was taken.

    Raises:
        RunError: not a LoRA run, a shape without a name at Hugging Face, or `out` is there.
    """
    run, step = find_run(path)
    if not run.recipe().lora.rank:
        raise RunError("is a run of all weights, and holds no adapter", where=str(path))
    write_adapter(run, step, out)
    return step


def write_adapter(run: RunFolder, step: int, out: Path, *, replace: bool = False) -> None:
    """The changes of a LoRA run as PEFT reads them.

    Raises:
        RunError: the model's shape has no name at Hugging Face that keeps its products apart.
    """
    recipe = run.recipe()
    config = peft_config(recipe.lora, recipe.model)
    saved = run.load(step).model
    tensors = {}
    for theirs, ours in ENDS.items():
        halves = {name.removesuffix(ours): x for name, x in saved.items() if name.endswith(ours)}
        for name, tensor in halves.items():
            tensors[f"{ROOT}{named_there(name, LLAMA)}{theirs}.weight"] = tensor
    with files.publish(out, replace=replace) as work:
        files.write_json(work / CONFIG, config)
        save_tensors(tensors, work / WEIGHTS)
        files.write_json(work / BASE, run.base_facts())


def peft_config(lora: LoraConfig, model: ModelConfig) -> dict[str, Any]:
    """What PEFT has to know of an adapter.

    Raises:
        RunError: the model's shape is not one of Llama's kin.
    """
    if (model.norm, model.positions, model.mlp) != ("rms", "rope", "swiglu"):
        raise RunError(
            f'a model with norm = "{model.norm}", positions = "{model.positions}" and'
            f' mlp = "{model.mlp}" has no name at Hugging Face under which its products stay apart',
            fix="sparrow merge writes the adapted model as an ordinary run",
        )
    products = (f"blocks.0.{_owner(name)}.{name}" for name in lora_targets(lora, model))
    alpha = int(lora.alpha) if lora.alpha.is_integer() else lora.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": lora.rank,
        "lora_alpha": alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted(named_there(name, LLAMA).rpartition(".")[2] for name in products),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }


def merge_run(path: Path, out: Path) -> int:
    """Write a LoRA run's model as an ordinary run, with its changes in its weights.

    Args:
        path: a LoRA run, taken at its best step, or one of its checkpoints.
        out: the run folder to write.

    Returns:
        The step that was taken.

    Raises:
        RunError: not a LoRA run, or `out` holds a run already.
    """
    run, step = find_run(path)
    made = RunFolder(out)
    recipe = run.recipe()
    if made.exists:
        raise RunError("holds a run already", where=str(out), fix="choose another --out")
    if not recipe.lora.rank:
        raise RunError("is a run of all weights: nothing is to be merged", where=str(path))
    saved, weights = run.load(step), run.weights(step)
    made.create()
    folder = run.path / "tokenizer"
    if folder.is_dir():
        with files.publish(out / "tokenizer", replace=True) as work:
            load_tokenizer(folder).save(work)
        recipe = replace(recipe, tokenizer=TokenizerConfig("folder", str(out / "tokenizer")))
    origin = {"merged from": str(run.folder(step).resolve()), **run.base_facts()}
    files.write_json(out / "machine.json", {"machine": machine(), "data": origin})
    state = State(
        step=step,
        threads=saved.state.threads,
        data_fingerprint=saved.state.data_fingerprint,
        tokenizer_fingerprint=saved.state.tokenizer_fingerprint,
    )
    # An objective's own parameters, such as a reward head, belong to the model; optimizer buffers
    # would belong to weights that no longer exist.
    own = {name: x for name, x in saved.trainer.items() if name.startswith("objective/")}
    made.save(Checkpoint(state, weights, own), keep_last=1)
    # Last: its presence says that a run is here.
    files.write_text(out / "config.toml", dump_recipe(_plain(recipe)))
    return step


def _plain(recipe: Recipe) -> Recipe:
    """The recipe of a merged run: of all weights, and from nowhere else."""
    return replace(recipe, lora=LoraConfig(), init=InitConfig())


def _owner(product: str) -> str:
    return "attention" if product in ("q", "k", "v", "o") else "mlp"


def _read_peft(path: Path) -> Adapter:
    values = files.read_json(path / CONFIG)
    if not isinstance(values, dict):
        raise RunError("is not a table of settings", where=str(path / CONFIG))
    if faults := _refused(values):
        raise RunError(
            f"asks for what a low-rank change of Sparrow's lacks: {', '.join(faults)}",
            where=str(path / CONFIG),
        )
    if (path / files.MANIFEST).is_file():
        files.verify(path)
    rank, alpha = values.get("r"), values.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or rank < 1:
        raise RunError("says no r and lora_alpha", where=str(path / CONFIG))
    tensors = {}
    for name, tensor in read_safetensors(path / WEIGHTS).items():
        plain = name.removeprefix(ROOT).removesuffix(".weight")
        for theirs, ours in ENDS.items():
            plain = f"{plain.removesuffix(theirs)}{ours}" if plain.endswith(theirs) else plain
        tensors[plain] = tensor.float()
    try:
        changes = changes_of(rename(tensors, LLAMA, str(path)), float(alpha))
    except RunError as fault:
        raise RunError(fault.what, where=str(path)) from fault
    if values.get("use_rslora"):  # alpha / sqrt(r) (Kalajdzievski 2023)
        changes = {
            name: change._replace(scale=change.scale * math.sqrt(change.a.shape[0]))
            for name, change in changes.items()
        }
    base = path / BASE
    return Adapter(path, changes, files.read_json(base) if base.is_file() else {})


def _refused(values: dict[str, Any]) -> list[str]:
    """Settings of PEFT's that change what is computed and have no counterpart."""
    checks = {
        f"peft_type {values.get('peft_type')}": values.get("peft_type") != "LORA",
        f"bias {values.get('bias')}": values.get("bias", "none") != "none",
        "fan_in_fan_out": bool(values.get("fan_in_fan_out")),
    }
    unknown = ("use_dora", "use_qalora", "modules_to_save", "alpha_pattern", "layer_replication",
               "lora_bias", "target_parameters", "trainable_token_indices")  # fmt: skip
    checks |= {name: bool(values.get(name)) for name in unknown}
    return [name for name, asked in checks.items() if asked]
