"""`sparrow tokenizer train INPUT…` and `sparrow tokenizer inspect DIR [FILE…]`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional

from sparrowlm.cli.cuts import cut_view, grounds, longest_view

if TYPE_CHECKING:
    from sparrowlm.config import DataConfig
    from sparrowlm.data.reader import Reader
    from sparrowlm.text.tokenizer import Tokenizer

NAME = "a sample in two languages"
SAMPLE = """\
The sparrow is small, and no organ is missing.
麻雀虽小，五脏俱全。
床前明月光，疑是地上霜。举头望明月，低头思故乡。
In 2026 it cost 1,234.56 dollars; don't ask why!
def add(a, b):
    return a + b  # naïve, 😀 一行注释
"""


def train(
    inputs: Positional[tuple[str, ...]],
    *,
    out: Path,
    vocab_size: int = 6400,
    kind: Literal["bpe", "chars"] = "bpe",
    pattern: Literal["qwen2", "gpt2"] = "qwen2",
    character_budget: int = 200_000_000,
    text_key: str = "text",
    encoding: str = "utf-8",
    document_separator: str = "",
    skip_bad: bool = False,
) -> None:
    """Learn a vocabulary from text.

    Args:
        inputs: Files, folders or globs: text, .jsonl, .json, .csv, .parquet (.gz, .zst), or hub
            addresses: hf:owner/name, modelscope:owner/name/path.
        out: The folder to write; transformers.AutoTokenizer reads it as it is.
        vocab_size: Entries of a bpe vocabulary: 16 special tokens, 256 bytes, and merges.
        kind: Byte-level BPE, or one id for each character of the text.
        pattern: How text is cut before merging.
        character_budget: Characters looked at for bpe, evenly over the input.
        text_key: Key of the text in a JSON row.
        encoding: Of plain text files.
        document_separator: A string that parts the documents of a plain file.
        skip_bad: Count bad rows instead of stopping.
    """
    from sparrowlm.config import DataConfig, TokenizerConfig
    from sparrowlm.data.reader import Reader
    from sparrowlm.data.sources import as_sources
    from sparrowlm.files import publish
    from sparrowlm.text.tokenizer import train_tokenizer

    console = Console(highlight=False)
    config = TokenizerConfig(
        kind=kind, vocab_size=vocab_size, pattern=pattern, character_budget=character_budget
    )
    data = DataConfig(
        text_key=text_key,
        encoding=encoding,
        document_separator=document_separator,
        skip_bad=skip_bad,
    )
    began = time.monotonic()
    with publish(out) as work:
        reader = Reader(as_sources(inputs), data)
        tokenizer = train_tokenizer(_read_all(reader, console), config)
        tokenizer.save(work)
    _tell_trained(tokenizer, reader, time.monotonic() - began, console)
    _say(console, str(out), "bold")


def inspect(
    folder: Positional[Path],
    files: Positional[tuple[str, ...]] = (),
    *,
    lines: int = 20,
    longest: int = 24,
    megabytes: int = 20,
    text_key: str = "text",
    encoding: str = "utf-8",
) -> None:
    """See how a vocabulary cuts text.

    Args:
        folder: A tokenizer: ours, any with a tokenizer.json, or GPT-2's files.
        files: Texts to measure it on; without any, a small sample in two languages.
        lines: Lines of the first file to show cut into tokens.
        longest: How many of the longest tokens to list.
        megabytes: How much of each file to look at.
        text_key: Key of the text in a JSON row.
        encoding: Of plain text files.
    """
    from sparrowlm.cli.counts import at_least
    from sparrowlm.config import DataConfig
    from sparrowlm.data.sources import as_sources
    from sparrowlm.text.tokenizer import load_tokenizer

    at_least(0, lines=lines, longest=longest, megabytes=megabytes)
    console = Console(highlight=False)
    tokenizer = load_tokenizer(folder)
    data = DataConfig(text_key=text_key, encoding=encoding, skip_bad=True)
    paths = [str(source.path) for source in as_sources(files)] if files else []
    _facts(tokenizer, folder, console)
    _file_table(tokenizer, paths, data, megabytes * 1_000_000, console)
    styles = grounds(console)
    _title(console, "longest tokens: bytes, id, token")
    console.print(longest_view(tokenizer, longest, console.width, styles))
    name = paths[0] if paths else NAME
    head = _head(paths[0], data, lines) if paths else SAMPLE
    _title(console, f"how {name} is cut")
    console.print(cut_view(tokenizer, head, styles), soft_wrap=True)
    for note in tokenizer.notes:
        _say(console, note, "yellow")


def _read_all(reader: Reader, console: Console) -> Iterator[str]:
    """Every piece of text, with a bar."""
    from sparrowlm.cli.show import PrepareProgress

    total = sum(source.path.stat().st_size for source in reader.sources)
    with PrepareProgress(console) as progress:
        for _, piece in reader.pieces():
            yield piece.text
            progress("reading", min(reader.read, total - 1), total)
        progress("reading", total, total)
    console.print(Text("merging", "dim"))


def _tell_trained(tokenizer: Tokenizer, reader: Reader, spent: float, console: Console) -> None:
    """What came of it, measured on the beginning of the text."""
    from sparrowlm.data.reader import Reader
    from sparrowlm.text.documents import END_OF_TEXT
    from sparrowlm.text.measure import measure

    head = Reader(reader.sources, reader.config).pieces()
    measured = measure(tokenizer, (piece.text for _, piece in head), limit=5_000_000)
    _say(console, f"{tokenizer.vocab_size:,} entries from {_megabytes(reader.read)} of files")
    _say(console, f"{measured.bytes_per_token:.2f} bytes per token on the first of it")
    _say(console, f"{spent:.1f} s, encoded by {tokenizer.engine}")
    if reader.parted and not reader.config.document_separator:
        files = "1 file" if len(reader.parted) == 1 else f"{len(reader.parted)} files"
        _say(console, f"in {files} a line of {END_OF_TEXT} ends a document")
    for note in tokenizer.notes:
        _say(console, note, "yellow")
    if reader.rejected:
        _say(console, f"{reader.rejected:,} rows rejected, such as {reader.shown[0]}", "yellow")


def _facts(tokenizer: Tokenizer, folder: Path, console: Console) -> None:
    from sparrowlm.errors import TokenizerError
    from sparrowlm.text.measure import all_bytes_text, measure, missing_bytes

    specials = len(tokenizer.special_ids)
    missing = missing_bytes(tokenizer)
    table = Table.grid(padding=(0, 2))
    table.add_row("kind", KINDS[tokenizer.kind])
    table.add_row("entries", f"{tokenizer.vocab_size:,}, {specials} of them special")
    table.add_row("encoded by", tokenizer.engine)
    table.add_row("fingerprint", tokenizer.fingerprint[:16])
    if tokenizer.kind == "chars":
        table.add_row("all bytes", "no: it writes only the characters it knows")
    else:
        try:
            exact = measure(tokenizer, [all_bytes_text()]).exact
        except TokenizerError:
            exact = False
        found = "each has a token" if not missing else f"{len(missing)} have no token"
        rest = "text over all of them comes back " + ("exactly" if exact else "changed")
        style = "green" if exact and not missing else "yellow"
        table.add_row("all 256 bytes", Text(f"{found}; {rest}", style))
    if specials:
        names = list(tokenizer.special_ids)
        more = f" … {specials - 9} more" if specials > 9 else ""
        table.add_row("special", Text(" ".join(names[:9]) + more))
    console.print(Text(str(folder), "bold"), soft_wrap=True)
    console.print(table)


KINDS = {
    "bpe": "byte-level BPE",
    "chars": "characters",
    "bytes": "bytes",
    "gpt2": "byte-level BPE, GPT-2's",
    "folder": "of another project",
}


def _file_table(
    tokenizer: Tokenizer, paths: Sequence[str], data: DataConfig, limit: int, console: Console
) -> None:
    from sparrowlm.errors import TokenizerError
    from sparrowlm.text.measure import measure

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("text", overflow="fold")
    for name in ("bytes", "tokens", "bytes per token"):
        table.add_column(name, justify="right")
    table.add_column("comes back")
    for path in paths or [""]:
        texts = _texts(path, data) if path else iter([SAMPLE])
        name = path or NAME
        try:
            found = measure(tokenizer, texts, limit)
        except TokenizerError as fault:
            table.add_row(Text(name), "", "", "", Text(f"no: {fault.what}", "yellow"))
            continue
        back = Text("exactly", "green") if found.exact else Text("changed", "yellow")
        table.add_row(
            Text(name if found.whole else f"{name} (its first {_megabytes(found.bytes)})"),
            f"{found.bytes:,}",
            f"{found.tokens:,}",
            Text(f"{found.bytes_per_token:.2f}", "bold"),
            back,
        )
    console.print(table)


def _texts(path: str, data: DataConfig) -> Iterator[str]:
    from sparrowlm.data.reader import Reader
    from sparrowlm.data.sources import as_sources

    return (piece.text for _, piece in Reader(as_sources([path]), data).pieces())


def _head(path: str, data: DataConfig, lines: int) -> str:
    """The first lines of a file's text, over as many documents as it takes."""
    found: list[str] = []
    for text in islice(_texts(path, data), lines):
        found += text.split("\n")[: lines - len(found)]
        if len(found) >= lines:
            break
    return "\n".join(line[:400] for line in found)


def _title(console: Console, text: str) -> None:
    console.print(Text(f"\n{text}", "bold"), soft_wrap=True)


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style), soft_wrap=True)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
