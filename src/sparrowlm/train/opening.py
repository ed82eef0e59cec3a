"""What a recipe trains on, opened: text is prepared first, once, into the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from sparrowlm.checkpoint import RunFolder, find_run
from sparrowlm.config import ModelConfig, Recipe, TokenizerConfig, learns_to_answer
from sparrowlm.data.chats import is_sequences, open_sequences, prepare_sequences
from sparrowlm.data.mixture import Mixture, join, named_mix, prepare_mix
from sparrowlm.data.prepare import prepare_cached
from sparrowlm.data.prompts import PromptDataset, open_prompts
from sparrowlm.data.sequences import AnyDataset, SequenceDataset
from sparrowlm.data.shards import FACTS, Dataset, named_dataset, open_dataset
from sparrowlm.data.sources import Source, as_sources
from sparrowlm.data.survey import kind_of
from sparrowlm.errors import ConfigError
from sparrowlm.infer.tools import SCHEMAS
from sparrowlm.runtime import Runtime, cache_folder
from sparrowlm.text.tokenizer import load_tokenizer, make_tokenizer
from sparrowlm.train.distributed import barrier

Progress = Callable[[str, int, int], None]
Made = TypeVar("Made")


def dataset_of(
    recipe: Recipe, runtime: Runtime, progress: Progress | None = None, folder: Path | None = None
) -> AnyDataset:
    """Open what `data.path` or `data.mix` names; text is prepared into the cache first, by rank
    0."""
    if recipe.stage in ("grpo", "ppo"):
        return prompts_of(recipe, runtime)
    if learns_to_answer(recipe):
        return _sequences(recipe, runtime, progress, folder)
    if folder is None and recipe.data.mix:
        return _mixture(recipe, runtime, progress)
    if folder is None:
        _first_path(recipe)  # none is told of
        folder = named_dataset(recipe.data.path)
    if folder is None:
        folder = _main_first(runtime, progress, lambda told: prepare_text(recipe, told))
    return open_folder(folder, recipe)


def _sequences(
    recipe: Recipe, runtime: Runtime, progress: Progress | None, folder: Path | None
) -> SequenceDataset:
    """Open conversations or pairs, and the text that is replayed beside them."""
    first = _first_path(recipe) if folder is None else folder
    if folder is None and len(recipe.data.path) == 1 and is_sequences(first):
        folder = first
    if folder is None:
        cache, seq_len = cache_folder() / "prepared", recipe.train.seq_len
        seq_len = seq_len or recipe.model.max_seq_len
        kind = _kind(recipe)

        def prepare(told: Progress | None) -> Path:
            return prepare_sequences(recipe.data, recipe.tokenizer, cache, kind, seq_len, told)

        folder = _main_first(runtime, progress, prepare)
    dataset = open_sequences(folder)
    if dataset.train.bundle_size != (2 if recipe.stage in ("dpo", "reward") else 1) and not (
        recipe.stage == "dpo" and recipe.preference.loss == "kto"
    ):
        raise ConfigError(
            f"holds {dataset.description['kind']}, which stage {recipe.stage} does not train on",
            where=str(folder),
        )
    if not recipe.data.replay:
        return dataset
    if recipe.stage != "sft":
        raise ConfigError(f"is not for stage {recipe.stage}, only for sft", where="data.replay")
    tokenizer = TokenizerConfig(kind="folder", path=str(folder / "tokenizer"))
    data = replace(recipe.data, path=recipe.data.replay, mix=(), replay=())
    text = replace(recipe, stage="pretrain", data=data, tokenizer=tokenizer)
    return _with_replay(dataset, dataset_of(text, runtime, progress))


def _kind(recipe: Recipe) -> str:
    """What a stage's rows hold; kto takes labelled completions, and pairs as well."""
    if recipe.stage == "dpo" and recipe.preference.loss == "kto":
        return kind_of(as_sources(recipe.data.path, recipe.data.mirror), ("labelled", "pairs"))
    return "pairs" if recipe.stage in ("dpo", "reward") else "chats"


def _with_replay(dataset: SequenceDataset, text: AnyDataset) -> SequenceDataset:
    assert isinstance(text, Dataset), "of stage pretrain"
    own, theirs = dataset.tokenizer, text.tokenizer
    if theirs is None or theirs.fingerprint != own.fingerprint:
        raise ConfigError(
            "was prepared with another tokenizer than the conversations",
            where="data.replay",
            fix="name the text itself: it is tokenized anew",
        )
    both = hashlib.sha256(f"{dataset.fingerprint} {text.fingerprint}".encode()).hexdigest()
    return replace(dataset, replay=text, fingerprint=both)


def _first_path(recipe: Recipe) -> Path:
    if not recipe.data.path:
        raise ConfigError(
            "is empty", where="data.path", fix="name files, folders or a prepared dataset"
        )
    return Path(recipe.data.path[0]).expanduser()


def prompts_of(recipe: Recipe, runtime: Runtime) -> PromptDataset:
    """The prompts that `data.path` names; every rank reads them, once rank 0 has fetched them.

    Raises:
        ConfigError: no vocabulary that a policy could have, or no room for an answer.
    """
    if recipe.tokenizer.kind in ("bpe", "chars"):
        raise ConfigError(
            f"a vocabulary of kind {recipe.tokenizer.kind} would be learned from the prompts",
            where="tokenizer.kind",
            why="the policy has one already",
            fix="set init.from to its run, which brings its vocabulary",
        )
    seq_len = recipe.train.seq_len or recipe.model.max_seq_len
    longest = seq_len + 1 - recipe.rollout.max_tokens
    if longest < 1:
        raise ConfigError(
            f"is {recipe.rollout.max_tokens}, and a row holds {seq_len} with the prompt",
            where="rollout.max_tokens",
            fix="lower it, or raise train.seq_len",
        )
    _first_path(recipe)  # none is told of as of every stage
    sources = _main_first(runtime, None, lambda _: as_sources(recipe.data.path, recipe.data.mirror))
    return open_prompts(
        sources,
        make_tokenizer(recipe.tokenizer, lambda: ()),
        recipe.rollout,
        val_fraction=recipe.data.val_fraction,
        longest=longest,
        tools=[SCHEMAS[name] for name in recipe.rollout.tools if name in SCHEMAS],
        skip_bad=recipe.data.skip_bad,
    )


def _mixture(recipe: Recipe, runtime: Runtime, progress: Progress | None) -> Mixture:
    """Open the sources of `data.mix`."""
    cache = cache_folder() / "prepared"
    folders = _main_first(
        runtime, progress, lambda told: prepare_mix(recipe.data, recipe.tokenizer, cache, told)
    )
    return join(named_mix(recipe.data), [open_folder(folder, recipe) for folder in folders])


def _main_first(
    runtime: Runtime, progress: Progress | None, prepare: Callable[[Progress | None], Made]
) -> Made:
    """What rank 0 makes, and the other ranks then find made. Looking it up hashes the input, so
    no rank does it twice."""
    made = prepare(progress) if runtime.is_main else None
    barrier(runtime)
    return prepare(None) if made is None else made


def open_folder(folder: Path, recipe: Recipe) -> Dataset:
    """Open a dataset. One that brings no vocabulary gets the recipe's, where that one needs no
    training: so nanoGPT's folder of GPT-2 tokens has samples and bits per byte."""
    tokenizer = None
    if recipe.tokenizer.kind in ("gpt2", "folder", "bytes") and not (folder / FACTS).exists():
        tokenizer = make_tokenizer(recipe.tokenizer, lambda: ())
    return open_dataset(folder, token_dtype=recipe.data.token_dtype, tokenizer=tokenizer)


def prepare_text(
    recipe: Recipe, progress: Progress | None, sources: Sequence[Source] | None = None
) -> Path:
    """The prepared dataset of a recipe's text, or of `sources`, from the cache or made now."""
    cache = cache_folder() / "prepared"
    return prepare_cached(recipe.data, recipe.tokenizer, cache, progress, sources)


def planned_vocabulary(recipe: Recipe) -> int:
    """The size a tokenizer will have, as far as the recipe alone tells."""
    tokenizer = recipe.tokenizer
    if recipe.model.vocab_size:
        return recipe.model.vocab_size
    if tokenizer.kind == "folder":
        return load_tokenizer(Path(tokenizer.path)).vocab_size
    return {"bpe": tokenizer.vocab_size, "gpt2": 50257, "bytes": 257, "chars": 128}[tokenizer.kind]


def inherit(recipe: Recipe, resumed: RunFolder | None = None) -> Recipe:
    """The recipe with the shape and the vocabulary of the run that `init.from` names, where it
    says nothing of its own about them; a student's vocabulary is that of its teacher. Dropout is
    not taken over by a policy: what is trained is the one that wrote (`config.rollout`).

    Args:
        recipe: as read.
        resumed: the run that goes on, which has both of its own where the other one has gone.

    Raises:
        RunError: no run there.
    """
    named = recipe.init.from_ or (recipe.stage == "distill" and recipe.distill.teacher)
    if not named:
        return recipe
    source = Path(named)
    gone = resumed is not None and not source.exists()
    run = resumed if gone and resumed is not None else find_run(source)[0]
    if recipe.init.from_ and recipe.model == ModelConfig():
        model = run.recipe().model
        if recipe.stage in ("grpo", "ppo"):
            model = replace(model, dropout=0.0)
        recipe = replace(recipe, model=model)
    folder = run.path / "tokenizer"
    kept = Path(recipe.tokenizer.path)
    lost = gone and recipe.tokenizer.kind == "folder" and not kept.exists()
    if (recipe.tokenizer == TokenizerConfig() or lost) and folder.is_dir():
        recipe = replace(recipe, tokenizer=TokenizerConfig(kind="folder", path=str(folder)))
    return recipe
