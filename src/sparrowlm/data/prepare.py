"""Text to tokens on disk.

    sources -> pieces -> loads -> ids (workers) -> spool -> train, val -> manifest

One process reads and writes; workers encode. Everything passes in the order of the sources, and
nothing is held but the loads under way, so neither the number of workers nor the size of the
input changes what comes out or how much memory it takes. Free of torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparrowlm import files
from sparrowlm.config.schema import DataConfig, TokenizerConfig
from sparrowlm.data.build import Progress, build
from sparrowlm.data.cache import cache_key, clean, is_whole, learning_texts
from sparrowlm.data.clean import check_cleaning
from sparrowlm.data.lock import locked, made_once
from sparrowlm.data.sources import Source, as_sources
from sparrowlm.data.split import check_share

if TYPE_CHECKING:
    from sparrowlm.text.tokenizer import Tokenizer

PASSED_OVER = "passed over:"  # begins the note on it


@dataclass(frozen=True)
class Summary:
    """What was prepared."""

    folder: Path
    splits: dict[str, dict[str, Any]]
    """For train and val: tokens, documents, bytes (UTF-8, of the text), shards."""
    accepted: int
    rejected: int
    shown: tuple[str, ...]
    """The first rejections, as file:line: reason; all of them are in `rejected.jsonl`."""
    removed: dict[str, int]
    """Documents that cleaning took out, by reason; examples are in `removed.jsonl`."""
    examples: dict[str, str]
    """One for each of those reasons, as file:line, and the document it is like."""
    notes: tuple[str, ...]
    """What a person should know: how it was split and why, what parted documents."""


def prepare(
    inputs: Sequence[str | Path | Source],
    tokenizer: Tokenizer,
    out: Path,
    config: DataConfig,
    progress: Progress | None = None,
) -> Summary:
    """Write a prepared dataset.

    It appears under its name when it is whole. Killed and started again, it starts over, and what
    the killed one left is removed.

    Args:
        inputs: files, folders, globs, addresses of hubs, or sources with a group.
        tokenizer: makes the ids.
        out: the dataset's folder; must not exist.
        config: how to read and split; `config.path` is not looked at.
        progress: told of bytes read.

    Raises:
        DataError: a bad row, a wrong encoding, no text at all: naming file and line.
        RunError: `out` exists, or another process writes it.
    """
    check_share(config)
    check_cleaning(config.clean)
    passed_over: Counter[str] = Counter()
    sources = as_sources(inputs, config.mirror, passed_over)
    with locked(out, wait=False):
        files.sweep(out.parent, out.name)
        with files.publish(out) as work:
            told = told_of(passed_over)
            cleaning = clean(sources, config, work, progress)
            facts, reader = build(sources, tokenizer, work, config, progress, told, cleaning)
    return Summary(
        folder=out,
        splits=facts["splits"],
        accepted=reader.accepted,
        rejected=reader.rejected,
        shown=tuple(reader.shown),
        removed=facts["removed"],
        examples=reader.examples,
        notes=tuple(facts["notes"]),
    )


def prepare_cached(
    config: DataConfig,
    tokenizer_config: TokenizerConfig,
    cache: Path,
    progress: Progress | None = None,
    sources: Sequence[Source] | None = None,
) -> Path:
    """The prepared dataset of some text and a tokenizer, made where the cache has none.

    A bpe vocabulary is learned from the training side alone: what is held out stays unseen by the
    tokenizer too. A character vocabulary is of all the text, as nanoGPT's is; a character that
    only the held-out text has could not be said otherwise.

    Args:
        config: the text, how to read and split it.
        tokenizer_config: which tokenizer; its path, where it needs one, is read.
        cache: where prepared datasets are kept, each under a name made from contents and settings.
        progress: told of bytes read, and of learning the vocabulary.
        sources: instead of `config.path`.

    Returns:
        The dataset's folder. It is kept as it is: nothing may write into it.

    Raises:
        DataError: as `prepare`.
    """
    from sparrowlm.text.tokenizer import make_tokenizer

    check_share(config)
    check_cleaning(config.clean)
    passed_over: Counter[str] = Counter()
    inputs = sources if sources is not None else config.path
    found = as_sources(inputs, config.mirror, passed_over)

    def make(work: Path) -> None:
        cleaning = clean(found, config, work, progress)
        kind = tokenizer_config.kind
        tokenizer = make_tokenizer(
            tokenizer_config,
            lambda: learning_texts(found, config, kind, work, progress, cleaning),
        )
        build(found, tokenizer, work, config, progress, told_of(passed_over), cleaning)

    return made_once(cache / cache_key(found, config, tokenizer_config), is_whole, make)


def told_of(passed_over: Counter[str]) -> list[str]:
    """A note on what was left out of folders and repositories, where anything was.

    >>> told_of(Counter({"hidden": 2, "binary": 1}))
    ['passed over: 2 hidden, 1 binary']
    """
    kinds = ", ".join(f"{count} {kind}" for kind, count in passed_over.items())
    return [f"{PASSED_OVER} {kinds}"] if kinds else []
