"""`sparrow data inspect PATH`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional

from sparrowlm.report.words import printable

if TYPE_CHECKING:
    from sparrowlm.data.describe import Lengths
    from sparrowlm.data.shards import Dataset, Tokens
    from sparrowlm.text.tokenizer import Tokenizer

BAR = 36  # cells of the longest bar
EIGHTHS = " ▏▎▍▌▋▊▉█"


def inspect(
    path: Positional[Path],
    *,
    tokenizer: str = "",
    chat: bool = False,
    context: int = 0,
    split: Literal["train", "val"] = "train",
    rows: int = 3,
    row_tokens: int = 128,
    seed: int = 42,
    text_key: str = "text",
    encoding: str = "utf-8",
    token_dtype: Literal["uint16", "uint32"] = "uint16",
) -> None:
    """See what is in a dataset: counts, lengths of documents, rows as a model reads them.

    Args:
        path: A prepared dataset, nanoGPT's train.bin folder, or text, which is tokenized first.
        tokenizer: A tokenizer's folder, or "bytes"; of text, or of a train.bin folder.
        chat: The rows are conversations, pairs or labelled completions: show what is learned.
        context: With --chat: the length of a row; 0 shows several.
        split: Whose lengths and rows to show.
        rows: How many rows, from random places.
        row_tokens: Tokens of a row.
        seed: Of the places.
        text_key: Key of the text in a JSON row.
        encoding: Of plain text files.
        token_dtype: Of a headerless train.bin.
    """
    from sparrowlm.cli.counts import at_least
    from sparrowlm.data.shards import is_dataset, open_dataset
    from sparrowlm.errors import DataError

    at_least(0, rows=rows, context=context)
    at_least(1, row_tokens=row_tokens)
    console = Console(highlight=False)
    chosen = _tokenizer(tokenizer)
    if path.suffix == ".bin" and is_dataset(path.parent):
        raise DataError(
            "holds tokens of a dataset", where=str(path), fix=f"name its folder: {path.parent}"
        )
    ready = None
    if is_dataset(path):
        ready = open_dataset(path, token_dtype=token_dtype, tokenizer=chosen)
    if split == "val" and (ready is None or ready.val is None):
        raise DataError("has no held-out split", where=str(path), fix="--split train")
    if chat:
        from sparrowlm.cli.chat_inspect import inspect_chats

        inspect_chats(path, chosen, context, rows, seed, console)
        return
    if ready is not None:
        _show(ready, path, split, (rows, row_tokens, seed), console)
        return
    with _tokenized(path, chosen, text_key, encoding, console) as dataset:
        _show(dataset, path, split, (rows, row_tokens, seed), console)


def _tokenizer(name: str) -> Tokenizer | None:
    from sparrowlm.text.tokenizer import open_tokenizer

    return open_tokenizer(name) if name else None


@contextmanager
def _tokenized(
    path: Path, tokenizer: Tokenizer | None, text_key: str, encoding: str, console: Console
) -> Iterator[Dataset]:
    """Text as a dataset of one split, for as long as it is looked at."""
    from sparrowlm.cli.show import PrepareProgress
    from sparrowlm.config import DataConfig
    from sparrowlm.data.prepare import prepare
    from sparrowlm.data.shards import open_dataset
    from sparrowlm.text.tokenizer import byte_tokenizer

    config = DataConfig(text_key=text_key, encoding=encoding, val_fraction=0.0, skip_bad=True)
    if tokenizer is None:
        console.print(Text("no --tokenizer is named: a token is a byte", "yellow"))
    # Windows removes no file that is still mapped; what it leaves, the system clears away.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        out = Path(folder) / "dataset"
        with PrepareProgress(console) as progress:
            summary = prepare([path], tokenizer or byte_tokenizer(), out, config, progress)
        if summary.rejected:
            told = f"{summary.rejected:,} rows rejected, such as {summary.shown[0]}"
            console.print(Text(told, "yellow"), soft_wrap=True)
        yield open_dataset(out)


def _show(
    dataset: Dataset, path: Path, split: str, sampled: tuple[int, int, int], console: Console
) -> None:
    from sparrowlm.data.describe import document_lengths

    tokens = dataset.train if split == "train" or dataset.val is None else dataset.val
    lengths = document_lengths(tokens, dataset.eot_id)
    console.print(Text(f"\n{path}", "bold"), soft_wrap=True)
    console.print(_facts(dataset))
    console.print(_splits(dataset))
    if lengths is not None and lengths.documents:
        _title(console, f"length of the documents of {split}, in tokens")
        console.print(_histogram(lengths))
        console.print(Text(_middle(lengths), "dim"), soft_wrap=True)
    rows, length, seed = sampled
    if dataset.tokenizer is None:
        console.print(Text("\nno tokenizer, so no text: --tokenizer names one", "yellow"))
        return
    _rows(dataset, tokens, split, (rows, min(length, len(tokens)), seed), console)


def _facts(dataset: Dataset) -> Table:
    facts, tokenizer = dataset.description, dataset.tokenizer
    table = Table.grid(padding=(0, 2))
    named = f"{tokenizer.kind}, {tokenizer.fingerprint[:16]}" if tokenizer else "unknown"
    table.add_row("tokenizer", Text(f"{named}; {dataset.vocab_size:,} entries, {facts['dtype']}"))
    table.add_row("dataset", Text(dataset.fingerprint[:16]))
    if "accepted" in facts:
        table.add_row("rows", Text(f"{facts['accepted']:,} read, {facts['rejected']:,} rejected"))
    for note in facts["notes"]:
        table.add_row("note", Text(note))
    return table


def _splits(dataset: Dataset) -> Table:
    from sparrowlm.data.describe import document_lengths, text_bytes

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for name in ("documents", "tokens", "bytes of text", "bytes/token"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, tokens in (("train", dataset.train), ("val", dataset.val)):
        if tokens is None:
            continue
        size = text_bytes(dataset, name)
        starts = tokens.document_starts
        lengths = document_lengths(tokens, dataset.eot_id) if starts is None else None
        count = len(starts) if starts is not None else lengths.documents if lengths else None
        table.add_row(
            name,
            "unknown" if count is None else f"{count:,}",
            f"{len(tokens):,}",
            "unknown" if size is None else f"{size:,}",
            "" if size is None else f"{size / max(1, len(tokens)):.2f}",
        )
    return table


def _histogram(lengths: Lengths) -> Table:
    """A bar for each power of two; the longest bar stands for the fullest one."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    bins = lengths.bins()
    fullest = max((count for _, _, count in bins), default=1)
    for low, high, count in bins:
        share = count / lengths.documents
        span = f"{low:,}" if low == high else f"{low:,}–{high:,}"
        table.add_row(span, f"{count:,}", f"{bar(count / fullest):<{BAR}} {share:>6.1%}")
    return table


def bar(share: float, width: int = BAR) -> str:
    """A bar of `share` of `width` cells, to an eighth of a cell; anything above 0 shows.

    >>> bar(0.5, 3), bar(0.001, 3)
    ('█▌', '▏')
    """
    eighths = max(round(share * width * 8), int(share > 0))
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def _middle(lengths: Lengths) -> str:
    from sparrowlm.data.describe import EXACT

    def told(length: int) -> str:
        return f"{length:,}" if length < EXACT else f"over {EXACT - 1:,}"

    shown = [("half up to", 0.5), ("90% up to", 0.9), ("99% up to", 0.99)]
    parts = [f"{name} {told(lengths.percentile(share))}" for name, share in shown]
    ends = [f"shortest {told(lengths.shortest)}", f"longest {lengths.longest:,}"]
    return ", ".join([ends[0], *parts, ends[1]])


def _rows(
    dataset: Dataset,
    tokens: Tokens,
    split: str,
    sampled: tuple[int, int, int],
    console: Console,
) -> None:
    """Rows of tokens as text: a line before each document, special tokens in brackets."""
    from sparrowlm.data.describe import random_starts

    count, length, seed = sampled
    for start in random_starts(tokens, count, length, seed):
        _title(console, f"{split}, tokens {start:,} to {start + length - 1:,}")
        console.print(_row(dataset, tokens, start, length), soft_wrap=not console.is_terminal)


def _row(dataset: Dataset, tokens: Tokens, start: int, length: int) -> Text:
    import numpy as np

    from sparrowlm.data.describe import spans

    assert dataset.tokenizer is not None
    ids, starts = tokens.read(start, length), tokens.document_starts
    first = 0
    if starts is not None:
        first, last = np.searchsorted(starts, [start, start + length])
        borders = (starts[first:last] - np.uint64(start)).tolist()
    elif dataset.eot_id is not None:
        borders = (np.flatnonzero(ids[:-1] == dataset.eot_id) + 1).tolist()
    else:
        borders = []
    view, number = Text(), int(first)
    for span in spans(ids, frozenset(borders), dataset.tokenizer):
        match span.kind:
            case "border":
                number += 1
                name = f" document {number:,} " if starts is not None else " document "
                fresh = "" if not view.plain or view.plain.endswith("\n") else "\n"
                view.append(f"{fresh}──{name}──\n", "dim cyan")
            case "special":
                view.append(f"[{span.text}]", "reverse")
            case _:
                view.append(printable(span.text))
    return view


def _title(console: Console, text: str) -> None:
    console.print(Text(f"\n{text}", "bold"), soft_wrap=True)
