"""What names a cache entry, and the tokenizer that is learned for one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sparrowlm import files
from sparrowlm.config.schema import DataConfig, TokenizerConfig
from sparrowlm.data.build import Progress, check_not_empty, cut_position
from sparrowlm.data.clean import Cleaning, judge, wants_cleaning
from sparrowlm.data.reader import Reader
from sparrowlm.data.shards import FACTS, FORMAT, sizes_match
from sparrowlm.data.sources import Source
from sparrowlm.data.split import (
    HELD_OUT,
    PIECE,
    Cut,
    Plan,
    Tally,
    decide,
    decided,
    find_cut,
)
from sparrowlm.data.tokens import are_tokens, refuse_learning
from sparrowlm.data.writer import Spool
from sparrowlm.errors import ConfigError
from sparrowlm.text.documents import format_of

READING = ("text_key", "encoding", "document_separator", "split", "val_fraction", "skip_bad")
"""The settings of `DataConfig` that decide what a prepared dataset holds."""
LEARNING = ("kind", "vocab_size", "pattern", "character_budget")
T = TypeVar("T")
WHOLE = 1 << 30  # bytes up to which a file is hashed whole
SPREAD, BLOCK = 256, 1 << 20


def cache_key(sources: list[Source], config: DataConfig, tokenizer: TokenizerConfig) -> str:
    """The name of the entry: of contents and settings, not of where the files lie.

    A file of up to 1 GiB is hashed whole. Of a larger one, its size, its time of change and 256
    evenly spread MiB are, so that a start does not read a hundred gigabytes.
    """
    parts: dict[str, Any] = {
        "format": FORMAT,
        "files": [
            [content_hash(source.path), source.group, format_of(source.path)] for source in sources
        ],
        "data": {name: getattr(config, name) for name in READING},
        "tokenizer": tokenizer_key(tokenizer),
    }
    if wants_cleaning(config.clean):
        parts["clean"] = asdict(config.clean)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def content_hash(path: Path) -> str:
    """SHA-256 of a file, or of a sample of a large one (see `cache_key`)."""
    facts = path.stat()
    if facts.st_size <= WHOLE:
        return files.hash_file(path)
    digest = hashlib.sha256(f"{facts.st_size} {facts.st_mtime_ns}".encode())
    with path.open("rb") as file:
        for index in range(SPREAD):
            file.seek(index * (facts.st_size - BLOCK) // (SPREAD - 1))
            digest.update(file.read(BLOCK))
    return digest.hexdigest()


def is_whole(folder: Path) -> bool:
    """Whether a dataset is there and its files have the sizes that its manifest says."""
    return (folder / FACTS).is_file() and sizes_match(folder)


def clean(
    sources: list[Source], config: DataConfig, work: Path, progress: Progress | None = None
) -> Cleaning | None:
    """Which documents `data.clean` removes; None where it asks for nothing.

    Args:
        work: an existing folder for what is needed meanwhile; left as it was.

    Raises:
        ConfigError: the sources are tokens, whose text nobody has.
    """
    if not wants_cleaning(config.clean):
        return None
    if are_tokens(sources):
        raise ConfigError(
            "cleans text, and the data is tokens already",
            where="data.clean",
            fix="leave data.clean out, or give the text that the tokens were made from",
        )
    reader = Reader(sources, config)
    return judge(_shown(reader, reader.seen(), "cleaning", progress), config.clean, work)


def learning_texts(
    sources: list[Source],
    config: DataConfig,
    kind: str,
    work: Path,
    progress: Progress | None = None,
    cleaning: Cleaning | None = None,
) -> Iterator[str]:
    """What a tokenizer of this kind, bpe or chars, is learned from.

    Args:
        work: an existing folder for what is needed meanwhile; left as it was.

    Raises:
        ConfigError: the sources are tokens.
    """
    refuse_learning(sources, kind)
    if kind == "chars":
        reader = Reader(sources, config, cleaning=cleaning)
        return (piece.text for _, piece in reader.pieces())
    return training_texts(sources, config, work, progress, cleaning)


def training_texts(
    sources: list[Source],
    config: DataConfig,
    work: Path,
    progress: Progress | None = None,
    cleaning: Cleaning | None = None,
) -> Iterator[str]:
    """The text of the training side, in order; long documents in pieces.

    Reads the input twice: how it is split is known only once all of it has been seen.
    """
    reader = Reader(sources, config, cleaning=cleaning)
    spool, tally, plan = _survey(reader, work, progress)
    try:
        table = spool.finish()
        cut = find_cut(table, tally, config.val_fraction) if plan.rule == "tail" else None
        del table
    finally:
        spool.remove()
    again = Reader(sources, config, cleaning=cleaning)
    yield from _training_side(again, plan, cut, progress)


def _survey(reader: Reader, work: Path, progress: Progress | None) -> tuple[Spool, Tally, Plan]:
    """All pieces without their tokens, and how they are to be split."""
    spool, tally = Spool(work, np.dtype("<u2")), Tally()
    config = reader.config
    for load in _shown(reader, reader.loads(), "reading", progress):
        table = np.zeros(len(load.texts), PIECE)
        table["characters"] = list(map(len, load.texts))
        contents = [text.encode() for text in load.texts]
        table["bytes"] = list(map(len, contents))
        table["flags"] = [
            decided(flag, content, config.val_fraction)
            for flag, content in zip(load.flags, contents, strict=True)
        ]
        spool.append(np.empty(0, "<u2"), table)
        tally.add(table)
    check_not_empty(tally, reader)
    return spool, tally, decide(tally, config, grouped=bool(reader.sources[0].group))


def _training_side(
    reader: Reader, plan: Plan, cut: Cut | None, progress: Progress | None
) -> Iterator[str]:
    share = reader.config.val_fraction if plan.rule in ("hash", "group") else 0.0
    number = 0
    for load in _shown(reader, reader.loads(), "learning the vocabulary", progress):
        for text, flag in zip(load.texts, load.flags, strict=True):
            if cut is not None and number == cut.piece:
                if cut.inside is not None:
                    yield text[: cut_position(text, cut, plan)]
                return
            number += 1
            if not share or not decided(flag, text.encode(), share) & HELD_OUT:
                yield text


def _shown(reader: Reader, loads: Iterator[T], what: str, progress: Progress | None) -> Iterator[T]:
    """Loads of a reader, and how far it is."""
    total = sum(source.path.stat().st_size for source in reader.sources)
    for load in loads:
        if progress is not None:
            progress(what, reader.read, total)
        yield load
    if progress is not None:
        progress(what, total, total)


def tokenizer_key(config: TokenizerConfig) -> list[str | int]:
    """What decides the ids: how a vocabulary is learned, or which one it is."""
    from sparrowlm.text.tokenizer import make_tokenizer

    match config.kind:
        case "bpe":
            return [getattr(config, name) for name in LEARNING]
        case "gpt2" | "folder":
            return [config.kind, make_tokenizer(config, lambda: ()).fingerprint]
        case _:
            return [config.kind]
