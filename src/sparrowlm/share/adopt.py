"""Another project's checkpoint becomes a run folder: what `sparrow import` does."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sparrowlm import files
from sparrowlm.checkpoint import Checkpoint, RunFolder, State
from sparrowlm.config import (
    ModelConfig,
    Recipe,
    TokenizerConfig,
    check_numbers,
    dump_recipe,
    recipe_from_dict,
    resolve_model,
)
from sparrowlm.errors import ConfigError, DataError, RunError, TokenizerError
from sparrowlm.model.count import count_parameters
from sparrowlm.model.transformer import Transformer
from sparrowlm.runtime import env, machine
from sparrowlm.share.asked import Asked
from sparrowlm.share.foreign import Foreign, read_foreign
from sparrowlm.share.llama2c import read_tokenizer_bin
from sparrowlm.share.opening import Opened, Tensors
from sparrowlm.text.tokenizer import (
    Tokenizer,
    byte_tokenizer,
    character_tokenizer,
    load_tokenizer,
)
from sparrowlm.train.build import load_weights


class Adopted(NamedTuple):
    """What an import did."""

    project: str
    why: str
    """What the checkpoint was recognized by."""
    config: ModelConfig
    parameters: int
    tokenizer: Tokenizer | None
    notes: list[str]


def adopt(
    path: Path,
    out: Path,
    asked: Asked | None = None,
    *,
    tokenizer: str = "",
    meta: Path | None = None,
) -> Adopted:
    """Turn a checkpoint into a run that generates the same tokens.

    Everything is read and checked before the first file is written.

    Args:
        path: a checkpoint, or a Hugging Face folder, or the weights in one.
        out: the run folder, which must not hold a run yet.
        asked: what the checkpoint does not tell.
        tokenizer: as of `named_tokenizer`; "" takes the one in a Hugging Face folder.
        meta: nanoGPT's `meta.pkl`, a vocabulary of characters.

    Raises:
        SparrowError: a file that cannot be read or trusted, a model that Sparrow's cannot
            express, weights that do not fit it, a tokenizer larger than its table.
    """
    if tokenizer and meta is not None:
        raise ConfigError("--meta and --tokenizer both name a vocabulary", fix="give one of them")
    run = RunFolder(out)
    if run.exists:
        raise RunError("holds a run already", where=str(out), fix="choose another --out")
    files.refuse_file(out)
    foreign = read_foreign(path, asked or Asked())
    vocabulary = _vocabulary(foreign.opened, tokenizer, meta)
    # By way of the reader of recipes, which holds every setting to its type.
    plain = recipe_from_dict({"model": asdict(foreign.config)}, source=str(path)).model
    check_numbers(replace(Recipe(), model=plain), str(path))
    config = resolve_model(plain, vocabulary.vocab_size if vocabulary else 0)
    weights = checked_weights(config, foreign.opened)
    _write(run, foreign, config, weights, vocabulary)
    count = sum(value.numel() for value in weights.values())
    notes = foreign.opened.notes
    return Adopted(foreign.project, foreign.why, config, count, vocabulary, notes)


def checked_weights(config: ModelConfig, opened: Opened) -> Tensors:
    """The weights in float32, once a model of this shape has taken them.

    Raises:
        RunError: a tensor is missing, left over, of another shape or no numbers of ours.
    """
    for name, value in opened.tensors.items():
        if not value.is_floating_point():
            raise RunError(
                f"holds {name} as {str(value.dtype).removeprefix('torch.')}",
                where=str(opened.path),
                why="quantized weights are not what a model is trained from",
            )
    wanted = count_parameters(config).total
    held = sum(value.numel() for value in opened.tensors.values())
    if wanted > 2 * held:  # before memory is taken for it
        raise RunError(
            f"does not fit: it holds {held} numbers, and its settings want {wanted}",
            where=str(opened.path),
        )
    model = Transformer(config)
    try:
        load_weights(model, {name: value.float() for name, value in opened.tensors.items()})
    except RunError as fault:
        raise RunError(f"does not fit: {fault.what}", where=str(opened.path)) from fault
    weights = dict(model.state_dict())
    broken = [name for name, value in weights.items() if not value.isfinite().all()]
    if broken:
        named = ", ".join(broken[:3]) + (f" and {len(broken) - 3} more" if broken[3:] else "")
        opened.notes.append(f"NaN or infinity in {named}: the model will not write sense")
    return weights


def named_tokenizer(name: str) -> Tokenizer:
    """`bytes`, `gpt2` (from tiktoken's cache on this machine), llama2.c's `tokenizer.bin`, or a
    folder as of `load_tokenizer`.

    Raises:
        TokenizerError: nothing there that can be read.
    """
    path = Path(name).expanduser()
    if name == "bytes":
        return byte_tokenizer()
    if name == "gpt2" and not path.exists():
        cache = env("TIKTOKEN_CACHE_DIR") or env("DATA_GYM_CACHE_DIR")
        path = Path(cache) if cache else Path(tempfile.gettempdir()) / "data-gym-cache"
    if path.suffix == ".bin":
        return read_tokenizer_bin(path)
    return load_tokenizer(path)


def meta_tokenizer(path: Path) -> Tokenizer:
    """The characters of nanoGPT's `meta.pkl`, opened by a reader of literals.

    Raises:
        DataError: the file asks for more than that, or holds no vocabulary of characters.
    """
    if not path.is_file():
        raise DataError("no such file", where=str(path))
    value = files.read_foreign(path)
    table: Any = value.get("itos") if isinstance(value, dict) else None
    try:
        characters = [table[number] for number in range(len(table))] if table else []
        if isinstance(table, dict) and characters and all(len(item) == 1 for item in characters):
            return character_tokenizer(characters)
    except (KeyError, TypeError, AttributeError, UnicodeError):
        pass
    raise DataError(
        "holds no vocabulary of characters",
        where=str(path),
        why='its "itos" is not a dictionary from 0, 1, 2 … to one character each',
    )


def _vocabulary(opened: Opened, name: str, meta: Path | None) -> Tokenizer | None:
    if meta is not None:
        return meta_tokenizer(meta)
    if name:
        return named_tokenizer(name)
    why = ""
    if opened.path.is_dir():
        try:
            return load_tokenizer(opened.path)
        except TokenizerError as fault:
            why = f" (the folder {fault.what})"
    opened.notes.append(f"no tokenizer{why}: the run cannot write text (--tokenizer, or --meta)")
    return None


def _write(
    run: RunFolder,
    foreign: Foreign,
    config: ModelConfig,
    weights: Tensors,
    tokenizer: Tokenizer | None,
) -> None:
    run.create()
    kind = Recipe().tokenizer
    if tokenizer is not None:
        with files.publish(run.path / "tokenizer", replace=True) as work:
            tokenizer.save(work)
        kind = TokenizerConfig(kind="folder", path=str(run.path / "tokenizer"))
    opened = foreign.opened
    origin = {"imported from": foreign.project, "file": str(opened.path.resolve())}
    origin |= {"recognized by": foreign.why, "steps there": opened.step}
    origin |= {} if opened.val_loss is None else {"held-out loss there": opened.val_loss}
    files.write_json(run.path / "machine.json", {"machine": machine(), "data": origin})
    state = State(
        step=max(1, opened.step),  # 0 would mean that nothing was saved
        threads=torch.get_num_threads(),
        tokenizer_fingerprint=tokenizer.fingerprint if tokenizer else "",
    )
    run.save(Checkpoint(state, weights, {}), keep_last=1)
    # Last: its presence says that a run is here.
    recipe = replace(Recipe(), model=config, tokenizer=kind)
    files.write_text(run.path / "config.toml", dump_recipe(recipe))
