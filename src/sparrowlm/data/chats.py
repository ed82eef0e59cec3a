"""Conversations, preferences, labelled completions and packed rows as sequences on disk.

    rows -> survey -> ids and mask -> spool -> train, val -> manifest

`sequences.py` says what is in the folder. Beside it, `noted.jsonl` lists what was cut, left out or
odd, and `rejected.jsonl` what is no conversation at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparrowlm import files
from sparrowlm.config.schema import DataConfig, TokenizerConfig
from sparrowlm.data.build import Progress, id_dtype
from sparrowlm.data.cache import content_hash, tokenizer_key
from sparrowlm.data.lock import made_once
from sparrowlm.data.packed import samples_of
from sparrowlm.data.sequences import FACTS, SequenceDataset, Sequences
from sparrowlm.data.shards import DTYPES, sizes_match
from sparrowlm.data.sources import Source, as_sources
from sparrowlm.data.split import check_share
from sparrowlm.data.survey import KINDS, Survey, fit
from sparrowlm.data.tokens import refuse_learning
from sparrowlm.errors import DataError
from sparrowlm.text.chat import CHAT_TEMPLATE, ChatFormat
from sparrowlm.text.documents import format_of
from sparrowlm.text.turns import dump

if TYPE_CHECKING:
    from sparrowlm.text.tokenizer import Tokenizer

FORMAT = 1
REJECTED, NOTED = "rejected.jsonl", "noted.jsonl"
SPLITS = ("train-", "val-")


def prepare_sequences(
    config: DataConfig,
    tokenizer_config: TokenizerConfig,
    cache: Path,
    kind: str,
    seq_len: int,
    progress: Progress | None = None,
    sources: Sequence[Source] | None = None,
) -> Path:
    """The prepared sequences of some conversations, made where the cache has none.

    Args:
        config: the files, how to read and split them.
        tokenizer_config: which tokenizer; one of kind bpe is learned from the training side.
        cache: where prepared data is kept, each under a name made from contents and settings.
        kind: of `KINDS`.
        seq_len: positions of a row.
        progress: told of bytes read.
        sources: instead of `data.path`.

    Raises:
        DataError: a bad row, a file that cannot be read, nothing to train on.
        TokenizerError: the tokenizer knows no turns.
    """
    from sparrowlm.text.tokenizer import make_tokenizer

    check_share(config)
    sources = as_sources(config.path if sources is None else sources, config.mirror)

    def make(work: Path) -> None:
        tokenizer = make_tokenizer(
            tokenizer_config, lambda: _learning_texts(sources, kind, config, tokenizer_config.kind)
        )
        survey = Survey(sources, kind, config.skip_bad)
        write(survey, tokenizer, work, config.val_fraction, seq_len, progress)

    return made_once(
        cache / _key(sources, config, tokenizer_config, kind, seq_len), _is_whole, make
    )


def _is_whole(folder: Path) -> bool:
    return (folder / FACTS).is_file() and sizes_match(folder)


def _key(
    sources: list[Source], config: DataConfig, tokenizer: TokenizerConfig, kind: str, seq_len: int
) -> str:
    from sparrowlm.text.tokenizer import make_tokenizer

    template = CHAT_TEMPLATE
    if tokenizer.kind == "folder":
        template = make_tokenizer(tokenizer, lambda: ()).chat_template or CHAT_TEMPLATE
    parts = {
        "format": ["sequences", FORMAT, kind, seq_len],
        "files": [[content_hash(one.path), format_of(one.path)] for one in sources],
        "data": [config.val_fraction, config.skip_bad],
        "tokenizer": tokenizer_key(tokenizer),
        "template": template,
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _learning_texts(
    sources: list[Source], kind: str, config: DataConfig, tokenizer_kind: str
) -> Iterator[str]:
    """What the training side says.

    Raises:
        ConfigError: the sources are tokens.
    """
    refuse_learning(sources, tokenizer_kind)
    for sample in Survey(sources, kind, True).samples():
        if sample.hash() >= config.val_fraction * 2**64:
            for side in sample.sides:
                yield from (message["content"] for message in side.messages)


def write(
    survey: Survey,
    tokenizer: Tokenizer,
    work: Path,
    val_fraction: float,
    seq_len: int,
    progress: Progress | None = None,
) -> None:
    """Fill a folder with sequences, manifest excepted.

    Raises:
        DataError: a bad row, or nothing that can be trained on.
    """
    chat, dtype = ChatFormat(tokenizer), id_dtype(tokenizer)
    total = sum(source.path.stat().st_size for source in survey.sources)
    sizes: list[int] = []  # of every sequence
    labels, hashes, read = bytearray(), [], 0  # of every bundle
    spool, marks = work / "ids.spool", work / "mask.spool"
    with spool.open("wb") as ids, marks.open("wb") as masks:
        for sample, sides in samples_of(survey, chat):
            kept, what = fit(sides, seq_len)
            if what:
                survey.note(sample, what)
            for side in kept:
                ids.write(side.ids.astype(dtype).tobytes())
                masks.write(side.mask.astype(np.uint8).tobytes())
                sizes.append(len(side.ids))
            if kept:
                labels.append(sample.label)
                hashes.append(sample.hash())
            if progress is not None and survey.read != read:
                read = survey.read
                progress("encoding", min(read, total), total)
    if not sizes:
        raise DataError(
            "holds nothing to train on",
            where=str(survey.sources[0].path),
            why=survey.told() or "no row is a conversation",
            fix="check data.path, and that answers fit train.seq_len",
        )
    size = KINDS[survey.kind].bundle_size
    held = held_out(np.array(hashes, np.uint64), val_fraction)
    flat = np.memmap(spool, dtype, "r"), np.memmap(marks, np.uint8, "r")
    splits = {}
    for name, chosen in (("train", ~held), ("val", held)):
        if name == "train" or chosen.any():
            splits[name] = _write_split(work, name, flat, sizes, chosen, size)
            if survey.kind == "labelled":
                (work / f"{name}-label.u8").write_bytes(
                    np.frombuffer(labels, np.uint8)[chosen].tobytes()
                )
    del flat
    spool.unlink()
    marks.unlink()
    _write_facts(survey, tokenizer, work, dtype, seq_len, splits)


def held_out(hashes: np.ndarray, share: float) -> np.ndarray:
    """(n,) bool: which bundles are held out, by their hash (n,) uint64. Where that leaves one side
    empty, as with a handful, the smallest hash is held out."""
    held = hashes < np.uint64(min(int(share * 2**64), 2**64 - 1))
    if share and len(set(hashes.tolist())) > 1 and (held.all() or not held.any()):
        held = hashes == hashes.min()
    return held if not held.all() else np.zeros(len(hashes), bool)


def _write_split(
    work: Path,
    name: str,
    flat: tuple[np.ndarray, np.ndarray],
    sizes: list[int],
    chosen: np.ndarray,
    bundle_size: int,
) -> dict[str, int]:
    """One side, from the spool. Returns what the facts say of it."""
    ends = np.cumsum(sizes)
    numbers = np.flatnonzero(np.repeat(chosen, bundle_size))
    learned = 0
    first, second = work / f"{name}-ids.bin", work / f"{name}-mask.u8"
    with first.open("wb") as ids, second.open("wb") as masks:
        for number in numbers.tolist():
            place = slice(int(ends[number]) - sizes[number], int(ends[number]))
            ids.write(flat[0][place].tobytes())
            masks.write(flat[1][place].tobytes())
            learned += int(flat[1][place].sum())
    own = np.array(sizes, np.uint64)[numbers]
    starts = np.concatenate([np.zeros(1, np.uint64), np.cumsum(own, dtype=np.uint64)])
    (work / f"{name}-starts.u64").write_bytes(starts.astype("<u8").tobytes())
    return {"bundles": int(chosen.sum()), "tokens": int(own.sum()), "learned": learned}


def is_sequences(folder: Path) -> bool:
    """Whether a folder holds prepared sequences."""
    return (folder / FACTS).is_file()


def open_sequences(folder: Path) -> SequenceDataset:
    """Open what `prepare_sequences` made.

    Raises:
        RunError: a file is missing or is no JSON.
        DataError: the folder is not whole.
    """
    from sparrowlm.text.tokenizer import load_tokenizer

    facts = files.read_json(folder / FACTS)
    if not _is_whole(folder):
        raise DataError("is not whole", where=str(folder), fix="remove it, and it is made again")
    manifest = files.read_json(folder / files.MANIFEST)["files"]
    content = {name: one["sha256"] for name, one in manifest.items() if name.startswith(SPLITS)}
    return SequenceDataset(
        train=_open_split(folder, "train", facts),
        val=_open_split(folder, "val", facts) if "val" in facts["splits"] else None,
        tokenizer=load_tokenizer(folder / "tokenizer"),
        vocab_size=facts["vocab_size"],
        eot_id=facts["eot_id"],
        fingerprint=hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
        description={"folder": str(folder), **facts},
    )


def _open_split(folder: Path, name: str, facts: dict[str, Any]) -> Sequences:
    starts = np.fromfile(folder / f"{name}-starts.u64", "<u8")
    columns = {}
    if facts["kind"] == "labelled":
        labels = np.fromfile(folder / f"{name}-label.u8", np.uint8).astype(np.float32)
        columns["label"] = np.repeat(labels, np.diff(starts.astype(np.int64)))
    return Sequences(
        np.memmap(folder / f"{name}-ids.bin", DTYPES[facts["dtype"]], "r"),
        np.memmap(folder / f"{name}-mask.u8", np.uint8, "r"),
        starts,
        facts["bundle_size"],
        columns,
    )


def _write_facts(
    survey: Survey,
    tokenizer: Tokenizer,
    work: Path,
    dtype: np.dtype[Any],
    seq_len: int,
    splits: dict[str, dict[str, int]],
) -> None:
    (work / "tokenizer").mkdir()
    tokenizer.save(work / "tokenizer")
    rejected = [row._asdict() for row in survey.rejected]
    noted = [{"source": s, "line": n, "what": what} for s, n, what in survey.noted]
    for name, rows in ((REJECTED, rejected), (NOTED, noted)):
        if rows:
            files.write_text(work / name, "".join(f"{dump(row)}\n" for row in rows))
    facts = {
        "format": FORMAT,
        "kind": survey.kind,
        "bundle_size": KINDS[survey.kind].bundle_size,
        "dtype": dtype.name,
        "vocab_size": tokenizer.vocab_size,
        "eot_id": tokenizer.eot_id,
        "seq_len": seq_len,
        "tokenizer": {"kind": tokenizer.kind, "fingerprint": tokenizer.fingerprint},
        "splits": splits,
        "accepted": survey.accepted,
        "rejected": len(survey.rejected),
        "noted": survey.counts,
        "notes": [*([survey.told()] if survey.told() else []), *tokenizer.notes],
        "sources": [
            {"path": str(one.path), "bytes": one.path.stat().st_size} for one in survey.sources
        ],
    }
    files.write_json(work / FACTS, facts)
