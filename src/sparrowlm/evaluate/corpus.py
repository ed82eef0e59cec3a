"""A model measured on any text or chats, through the same files, windows and packing as a run's
own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from sparrowlm.batch import Batch
from sparrowlm.config import DataConfig, TokenizerConfig
from sparrowlm.data.chats import is_sequences, open_sequences, prepare_sequences
from sparrowlm.data.prepare import prepare_cached
from sparrowlm.data.sequences import SequenceDataset, packed_windows
from sparrowlm.data.shards import Dataset, is_dataset, open_dataset
from sparrowlm.data.sources import Source, as_sources
from sparrowlm.data.streams import windows
from sparrowlm.data.tokens import is_packed
from sparrowlm.errors import ConfigError, DataError
from sparrowlm.evaluate.answering import Subject
from sparrowlm.evaluate.figures import Figure, Measured, figures_of
from sparrowlm.evaluate.likelihood import evaluate
from sparrowlm.objectives.next_token import NextToken
from sparrowlm.runtime import cache_folder
from sparrowlm.text.conversations import Found, chat_of, read_values
from sparrowlm.text.documents import format_of

Progress = Callable[[str, int, int], None]
KINDS = ("auto", "text", "chats")
TOKENS = ("pretrain", "sft", "distill")
"""Stages whose loss is counted in tokens."""
POSITIONS = 8192
"""Of a forward pass, unless told otherwise."""


@dataclass(frozen=True)
class Reading:
    """How much is read, and with what context."""

    seq_len: int = 0
    """Tokens of a window; 0: as in training."""
    windows: int = 0
    """How many, evenly over all; 0: all."""
    stride: int = 0
    """Tokens from one window of text to the next; 0: side by side."""
    rows: int = 0
    """Windows of a forward pass; 0: as memory allows."""
    document_mask: bool = False
    """Context ends at the border of a document."""


def check_reading(reading: Reading, max_seq_len: int) -> None:
    """
    Raises:
        ConfigError: windows that the model cannot read.
    """
    seq_len = reading.seq_len or max_seq_len
    checks = {
        f"--seq-len {seq_len}: the model's context is {max_seq_len}": not 1
        <= seq_len
        <= max_seq_len,
        f"--stride {reading.stride}: must be 1 to {seq_len}, or 0 for windows side by side": not 0
        <= reading.stride
        <= seq_len,
        f"--windows {reading.windows}: must be 0 or more": reading.windows < 0,
    }
    if faults := [fault for fault, is_so in checks.items() if is_so]:
        raise ConfigError("; ".join(faults))


def measure_data(
    path: str,
    subject: Subject,
    vocabulary: Path,
    reading: Reading,
    *,
    kind: str = "auto",
    split: str = "",
    config: DataConfig | None = None,
    progress: Progress | None = None,
) -> Measured:
    """The nats and bits of text, or of the answers in chats.

    Args:
        path: text in any form that `sparrow data prepare` reads, chats, or what was prepared of
            either.
        subject: what is measured.
        vocabulary: the folder of its tokenizer.
        reading: how much, and with what context.
        kind: of `KINDS`; auto: chats where the first row is one, else text.
        split: train or val, of what was prepared; "": what was held out, or else all.
        config: how to read files; `path` and the split are not looked at.
        progress: told how far preparing is.

    Raises:
        DataError: nothing there that can be read.
        ConfigError: prepared with another vocabulary, or no such split.
    """
    dataset = open_data(path, subject, vocabulary, reading, kind, config or DataConfig(), progress)
    if dataset.tokenizer is None or dataset.tokenizer.fingerprint != subject.tokenizer.fingerprint:
        raise ConfigError(
            "was prepared with another vocabulary than the run's",
            where=path,
            why="its ids mean other text to this model",
            fix="name the text itself",
        )
    chosen = split or ("train" if dataset.val is None else "val")
    part = {"train": dataset.train, "val": dataset.val}.get(chosen)
    if part is None:
        raise ConfigError(f"has no split {chosen!r}", where=path, fix="leave out --split")
    chats = isinstance(dataset, SequenceDataset)
    lengths = torch.from_numpy(subject.tokenizer.byte_lengths()).long()
    objective = NextToken(lengths).to(subject.runtime.device)
    batches = _batches(dataset, chosen, reading, subject.model.config.max_seq_len)
    found = figures_of(evaluate(objective, subject.model, batches, subject.runtime))
    seq_len = reading.seq_len or subject.model.config.max_seq_len
    notes = tuple(dataset.description["notes"]) if chats else ()
    name = f"{path}, {chosen}" if dataset.val is not None else path
    how = describe(seq_len, reading, "sft" if chats else "pretrain", found)
    return Measured(name, how, found, notes)


def describe(seq_len: int, reading: Reading, stage: str, found: Mapping[str, Figure]) -> str:
    """How something was read, and how much of it, in a phrase."""
    some = f"{reading.windows:,} evenly spread " if reading.windows else ""
    size = f", {found['loss'].count:,.0f} tokens" if stage in TOKENS and "loss" in found else ""
    if stage not in ("pretrain", "distill"):
        return f"{some}packed rows of {seq_len}, what is learned of them{size}"
    if reading.stride and reading.stride < seq_len:
        context = f"each token behind {seq_len - reading.stride + 1} or more"
        return f"{some}windows of {seq_len}, {reading.stride} apart, {context}{size}"
    return f"{some}windows of {seq_len} side by side{size}"


def open_data(
    path: str,
    subject: Subject,
    vocabulary: Path,
    reading: Reading,
    kind: str,
    config: DataConfig,
    progress: Progress | None = None,
) -> Dataset | SequenceDataset:
    """What was prepared, or text and chats that are now, whole, with the model's own vocabulary.

    Raises:
        DataError: nothing there that can be read.
    """
    folder = Path(path).expanduser()
    if is_dataset(folder):
        # nanoGPT's folder says its characters itself, or nothing of its vocabulary.
        own = None if (folder / "meta.pkl").is_file() else subject.tokenizer
        return open_dataset(folder, token_dtype=config.token_dtype, tokenizer=own)
    if is_sequences(folder):
        return open_sequences(folder)
    sources = as_sources([path], config.mirror)
    chats = kind == "chats" or (kind == "auto" and holds_chats(sources, config.text_key))
    whole = DataConfig(
        path=(path,),
        mirror=config.mirror,
        text_key=config.text_key,
        encoding=config.encoding,
        document_separator=config.document_separator,
        skip_bad=config.skip_bad,
        val_fraction=0.0,
    )
    cache = cache_folder() / "prepared"
    tokenizer = TokenizerConfig(kind="folder", path=str(vocabulary))
    if not chats:
        return open_dataset(prepare_cached(whole, tokenizer, cache, progress, sources))
    seq_len = reading.seq_len or subject.model.config.max_seq_len
    made = prepare_sequences(whole, tokenizer, cache, "chats", seq_len, progress, sources)
    return open_sequences(made)


def holds_chats(sources: list[Source], text_key: str) -> bool:
    """Whether the first readable row of the first file is a conversation, and no text; or its
    tokens are those of packed ones."""
    if format_of(sources[0].path) == "tokens":
        return is_packed(sources[0].path)
    if format_of(sources[0].path) not in ("lines", "array", "parquet"):
        return False

    def is_chat(row: dict[str, object]) -> bool:
        if text_key in row:
            return False
        try:
            chat_of(row)
        except DataError:
            return False
        return True

    found = (row.value for row in read_values(sources[0].path, is_chat) if isinstance(row, Found))
    return next(found, False)


def _batches(
    dataset: Dataset | SequenceDataset, split: str, reading: Reading, context: int
) -> Iterator[Batch]:
    """A split as the rows of an evaluation."""
    seq_len = reading.seq_len or context
    rows = reading.rows or max(1, POSITIONS // seq_len)
    if isinstance(dataset, SequenceDataset):
        sequences = dataset.val if split == "val" else dataset.train
        assert sequences is not None, "looked at before"
        return packed_windows(sequences, seq_len, rows, reading.windows)
    tokens = dataset.val if split == "val" else dataset.train
    assert tokens is not None, "looked at before"
    return windows(
        tokens,
        seq_len,
        rows,
        limit=reading.windows,
        eot_id=dataset.eot_id,
        document_mask=reading.document_mask and dataset.eot_id is not None,
        stride=reading.stride,
    )
