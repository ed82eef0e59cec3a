"""Tokens of a whole input in one pass: encode to the spool, decide the split, deal out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparrowlm import files
from sparrowlm.config.schema import DataConfig
from sparrowlm.data.clean import Cleaning
from sparrowlm.data.contamination import contamination, warnings
from sparrowlm.data.encode import Encoder, encode_all
from sparrowlm.data.reader import Reader
from sparrowlm.data.shards import DTYPES, FACTS, FORMAT
from sparrowlm.data.sources import Source
from sparrowlm.data.split import ENDS, STARTS, Cut, Plan, Tally, decide, find_cut, line_end
from sparrowlm.data.tokens import TokenPieces, are_tokens
from sparrowlm.data.writer import Dealer, SplitWriter, Spool
from sparrowlm.errors import DataError
from sparrowlm.text.documents import END_OF_TEXT

if TYPE_CHECKING:
    from sparrowlm.text.tokenizer import Tokenizer

Progress = Callable[[str, int, int], None]
"""Told what is going on, and how many of how many bytes are done."""

PROCESSES_FROM = 1 << 26  # bytes of input above which workers are processes
REJECTED, REMOVED = "rejected.jsonl", "removed.jsonl"
NAMED = 3  # files named in a note


def build(
    sources: list[Source],
    tokenizer: Tokenizer,
    work: Path,
    config: DataConfig,
    progress: Progress | None,
    told: Sequence[str] = (),
    cleaning: Cleaning | None = None,
) -> tuple[dict[str, Any], Reader]:
    """Fill the folder `work` with a prepared dataset, manifest excepted.

    Args:
        sources: text, or token files.
        tokenizer: makes the ids, or has made them.
        work: an existing, empty folder.
        config: how to read and split.
        progress: told of bytes read.
        told: notes to keep with the dataset.

    Returns:
        What `dataset.json` says, and what the reader met.

    Raises:
        DataError: a bad row, a file that cannot be read, no text at all.
    """
    (work / "tokenizer").mkdir()
    tokenizer.save(work / "tokenizer")
    reader = Reader(sources, config, work / REJECTED, cleaning, work / REMOVED, told=list(told))
    spool, tally = Spool(work, id_dtype(tokenizer)), Tally()
    encoder = Encoder(tokenizer, spool.shards.dtype, config.val_fraction)
    fill(spool, tally, reader, encoder, progress)
    return finish(spool, tally, reader, encoder), reader


def id_dtype(tokenizer: Tokenizer) -> np.dtype[Any]:
    """The smallest type on disk that holds every id."""
    return DTYPES["uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"]


def fill(
    spool: Spool, tally: Tally, reader: Reader, encoder: Encoder, progress: Progress | None
) -> None:
    """Read and encode everything onto the spool. Worker processes read the tokenizer from the
    folder beside it."""
    total = sum(source.path.stat().st_size for source in reader.sources)
    workers, apart = _workers(reader.config, total, encoder.tokenizer)
    folder = spool.shards.folder / "tokenizer" if apart else None
    tokens = _tokens(reader, encoder)
    found = tokens.batches() if tokens else encode_all(reader.loads(), encoder, workers, folder)
    for encoded in found:
        spool.append(encoded.ids, encoded.table)
        tally.add(encoded.table)
        if progress is not None:
            progress("encoding", min(encoded.read, total - 1), total)
    if progress is not None:
        progress("encoding", total, total)


def finish(spool: Spool, tally: Tally, reader: Reader, encoder: Encoder) -> dict[str, Any]:
    """What needs the whole: decide the split, deal the spool out, write down the facts.

    Returns:
        What `dataset.json` says.

    Raises:
        DataError: no text at all.
    """
    config, tokenizer = reader.config, encoder.tokenizer
    check_not_empty(tally, reader)
    plan = decide(tally, config, grouped=bool(reader.sources[0].group))
    tokens = _tokens(reader, encoder)
    if tokens is not None:
        plan = plan._replace(at_line_end=False)
    splits = _deal(spool, tally, plan, encoder, tokens or reader)
    shared = contamination(spool.shards.folder, reader)
    facts = {
        "format": FORMAT,
        "dtype": encoder.dtype.name,
        "vocab_size": tokenizer.vocab_size,
        "eot_id": tokenizer.eot_id,
        "tokenizer": {"kind": tokenizer.kind, "fingerprint": tokenizer.fingerprint},
        "splits": splits,
        "split": {"rule": plan.rule, "val_fraction": config.val_fraction, "reason": plan.reason},
        "accepted": reader.accepted,
        "rejected": reader.rejected,
        "removed": dict(reader.removed),
        "contamination": shared,
        "notes": [
            *notes(plan, config, reader),
            *reader.told,
            *warnings(shared),
            *tokenizer.notes,
        ],
        "sources": [
            {"path": str(source.path), "bytes": source.path.stat().st_size}
            | ({"group": source.group} if source.group else {})
            for source in reader.sources
        ],
    }
    files.write_json(spool.shards.folder / FACTS, facts)
    return facts


def _tokens(reader: Reader, encoder: Encoder) -> TokenPieces | None:
    """The sources as pieces of ids, where they hold ids."""
    if not are_tokens(reader.sources):
        return None
    return TokenPieces(reader, encoder.tokenizer, encoder.dtype)


def check_not_empty(tally: Tally, reader: Reader) -> None:
    """
    Raises:
        DataError: no text was found.
    """
    if tally.bytes:
        return
    rows, gone = reader.rows, reader.removed.total()
    names = [str(source.path) for source in reader.sources]
    raise DataError(
        "holds no text" if len(names) == 1 else f"{_some(names)}: no text in any of them",
        where=f"{names[0]}:1" if len(names) == 1 else "",
        why=f"of {rows} rows, {reader.rejected} were rejected"
        + (f", {gone} removed by data.clean" if gone else "")
        + " and the rest are empty"
        if rows
        else "",
        fix="check the path and data.text_key",
    )


def notes(plan: Plan, config: DataConfig, reader: Reader) -> list[str]:
    """What a person should know without asking."""
    share = f"{config.val_fraction:.0%}"
    told = {
        "none": "nothing is held out",
        "hash": f"held out: about {share} of the documents, by the hash of their text",
        "group": f"held out: whole groups, about {share} of the bytes",
        "tail": f"held out: the last {share}, by position",
    }[plan.rule]
    if plan.reason:
        told += " at a line end" * plan.at_line_end + f", since {plan.reason}"
    found = [told]
    if reader.parted and not config.document_separator:
        found.append(f"{_some(reader.parted)}: a line of {END_OF_TEXT} ends a document")
    if config.document_separator and not reader.parted:
        found.append(f"the separator {config.document_separator!r} was not found")
    if reader.empty:
        found.append(f"{_some(reader.empty)}: empty")
    return found


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _workers(config: DataConfig, total: int, tokenizer: Tokenizer) -> tuple[int, bool]:
    """How many workers, and whether they are processes.

    gigatoken encodes faster than a process can be handed the text.
    """
    if config.workers:
        return config.workers, config.workers > 1
    usable = getattr(os, "sched_getaffinity", None)  # Linux only: cores this process may use
    cores = len(usable(0)) if usable else os.cpu_count() or 1
    slow = tokenizer.engine != "gigatoken"
    return cores, cores > 1 and slow and total > PROCESSES_FROM


def _deal(
    spool: Spool, tally: Tally, plan: Plan, encoder: Encoder, again: Reader | TokenPieces
) -> dict[str, dict[str, Any]]:
    """Spool to splits. Returns what `dataset.json` says of each."""
    folder, dtype = spool.shards.folder, spool.shards.dtype
    train = SplitWriter(folder, "train", dtype)
    val = None if plan.rule == "none" else SplitWriter(folder, "val", dtype)
    table = spool.finish()
    dealer = Dealer(spool, train, val)
    if plan.rule == "tail":
        cut = find_cut(table, tally, encoder.share)
        dealer.deal(table[: cut.piece], side=0)
        rest = cut.piece
        if cut.inside is not None:
            _deal_in_two(dealer, int(table[rest]["tokens"]), cut, plan, encoder, again)
            rest += 1
        dealer.deal(table[rest:], side=1)
    else:
        dealer.deal(table, side=0 if val is None else None)
    dealer.finish()
    del table
    spool.remove()
    return {"train": train.close()} | ({} if val is None else {"val": val.close()})


def _deal_in_two(
    dealer: Dealer, tokens: int, cut: Cut, plan: Plan, encoder: Encoder, again: Reader | TokenPieces
) -> None:
    """The piece of `tokens` ids that the cut lies in. Text is read and encoded anew in halves;
    tokens are cut as they are."""
    ids = dealer.take(tokens)
    if isinstance(again, TokenPieces):
        for side, half in enumerate(again.halves(ids, cut.inside or 0)):
            half[1]["flags"] = STARTS
            dealer.give(side, *half)
        return
    piece = piece_at(again, cut.piece)
    at = cut_position(piece.text, cut, plan)
    head, tail = piece.text[:at], piece.text[at:]
    dealer.give(0, *encoder.piece(head, STARTS * piece.starts | ENDS))
    dealer.give(1, *encoder.piece(tail, STARTS | ENDS * piece.ends))


def piece_at(reader: Reader, number: int) -> Any:
    """Piece `number` of all, read again."""
    again = Reader(reader.sources, reader.config, cleaning=reader.cleaning)
    _, piece = next(islice(again.pieces(), number, None))
    return piece


def cut_position(text: str, cut: Cut, plan: Plan) -> int:
    """Where the piece's text is cut in two."""
    inside = cut.inside or 0
    return line_end(text, inside) if plan.at_line_end else inside
