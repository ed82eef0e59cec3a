"""`sparrow data prepare INPUT…`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from rich.text import Text
from tyro.conf import Positional

from sparrowlm.config import CleanConfig, DataConfig, Recipe, check_numbers

if TYPE_CHECKING:
    from sparrowlm.data.prepare import Summary

NOTHING = CleanConfig()


def prepare(
    inputs: Positional[tuple[str, ...]],
    *,
    tokenizer: str,
    out: Path,
    mirror: str = "",
    text_key: str = "text",
    encoding: str = "utf-8",
    document_separator: str = "",
    split: Literal["hash", "tail"] = "hash",
    val_fraction: float = 0.1,
    skip_bad: bool = False,
    workers: int = 0,
    clean: Annotated[CleanConfig, tyro.conf.arg(name="")] = NOTHING,
) -> None:
    """Turn text into tokens on disk, ready to train on.

    Args:
        inputs: Files, folders or globs: text, .jsonl, .json, .csv, .parquet (.gz, .zst), tokens
            in .h5; or hf:owner/name and modelscope:owner/name, perhaps with /a/file.
        tokenizer: A tokenizer's folder, or "bytes".
        out: The folder to write; it appears when it is whole.
        mirror: Another address of the hub, https://HOST; HF_ENDPOINT does the same.
        text_key: Key of the text in a JSON row, or its column in a table.
        encoding: Of plain text and .csv files.
        document_separator: A string that parts the documents of a plain file.
        split: Hold out by document hash, or the tail by position as nanoGPT does.
        val_fraction: Share held out.
        skip_bad: Count and list bad rows instead of stopping.
        workers: Processes that encode; 0 is one for each core.
        clean: What is removed.
    """
    from sparrowlm.cli.show import PrepareProgress
    from sparrowlm.data.prepare import prepare as write
    from sparrowlm.text.tokenizer import open_tokenizer

    console = Console(highlight=False)
    chosen = open_tokenizer(tokenizer)
    config = DataConfig(
        mirror=mirror,
        text_key=text_key,
        encoding=encoding,
        document_separator=document_separator,
        split=split,
        val_fraction=val_fraction,
        skip_bad=skip_bad,
        workers=workers,
        clean=clean,
    )
    check_numbers(Recipe(data=config))
    began = time.monotonic()
    with PrepareProgress(console) as progress:
        summary = write(inputs, chosen, out, config, progress)
    for line in _told(summary, time.monotonic() - began):
        console.print(Text(line), soft_wrap=True)
    for note in summary.notes:
        console.print(Text(note), soft_wrap=True)
    _show_removed(summary, console)
    _show_rejected(summary, console)
    console.print(Text(str(summary.folder), "bold"), soft_wrap=True)


def _told(summary: Summary, seconds: float) -> list[str]:
    """Counts of each split, and how fast it went."""
    lines = []
    for name, split in summary.splits.items():
        per_token = split["bytes"] / max(1, split["tokens"])
        lines.append(
            f"{name:<6}{split['documents']:>12,} documents{split['tokens']:>16,} tokens"
            f"{split['bytes']:>16,} bytes  {per_token:.2f} bytes per token"
        )
    size = sum(split["bytes"] for split in summary.splits.values())
    lines.append(
        f"{size / 1e6:,.1f} MB of text in {seconds:.1f} s, {size / 1e6 / seconds:.1f} MB/s"
    )
    return lines


def _show_removed(summary: Summary, console: Console) -> None:
    """How many documents cleaning took out, by reason, with an example of each."""
    if not summary.removed:
        return
    total = sum(summary.removed.values())
    rows = summary.accepted + total + summary.rejected
    console.print(Text(f"{total:,} of {rows:,} documents removed", "yellow"), soft_wrap=True)
    for reason, count in summary.removed.items():
        example = summary.examples.get(reason, "")
        console.print(Text(f"  {reason:<18}{count:>12,}  {example}"), soft_wrap=True)
    console.print(Text(f"  examples in {summary.folder / 'removed.jsonl'}"), soft_wrap=True)


def _show_rejected(summary: Summary, console: Console) -> None:
    if not summary.rejected:
        return
    rows = summary.accepted + sum(summary.removed.values()) + summary.rejected
    console.print(Text(f"{summary.rejected:,} of {rows:,} rows rejected", "yellow"), soft_wrap=True)
    for line in summary.shown:
        console.print(Text(f"  {line}"), soft_wrap=True)
    if summary.rejected > len(summary.shown):
        console.print(
            Text(f"  … all of them in {summary.folder / 'rejected.jsonl'}"), soft_wrap=True
        )
