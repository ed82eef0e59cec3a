"""Token files and what is known about them.

A prepared dataset is a folder:

    dataset.json              the facts: dtype, splits, tokenizer fingerprint, sources, counts
    train-00000.bin …         token ids, uint16 or uint32, little-endian, nothing else
    train-documents.u64       where each document starts, uint64, little-endian
    train-texts.hash          a hash of each document's text (`contamination`), uint64
    val-00000.bin, val-documents.u64, val-texts.hash
    tokenizer/
    manifest.json             hashes, written last

nanoGPT's folder (`train.bin`, `val.bin`, perhaps `meta.pkl`) is read as it is. Free of torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparrowlm import files
from sparrowlm.errors import DataError, TokenizerError, UserError

if TYPE_CHECKING:
    from sparrowlm.text.tokenizer import Tokenizer

FORMAT = 1
FACTS = "dataset.json"
DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
PIECE = 1 << 24  # tokens looked at together
FULL_CHECK = 1 << 30  # tokens up to which a vocabulary is checked in full at opening
SPREAD = 64  # blocks of a large headerless file that go into its fingerprint
BLOCK = 1 << 20  # bytes of one such block


class Tokens:
    """One split: token ids over one or more memory-mapped files, as one array.

    Args:
        paths: files of token ids, in order.
        dtype: "uint16" or "uint32".
        vocab_size: ids are below it; every read checks that.
        document_starts: (documents,) uint64, sorted; None where it is not known.

    Raises:
        DataError: a file is missing, or does not hold a whole number of ids.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        dtype: str,
        vocab_size: int,
        document_starts: np.ndarray | None = None,
    ) -> None:
        self.paths = tuple(paths)
        self.dtype, self.vocab_size = dtype, vocab_size
        self.document_starts = document_starts
        self._maps = [_map(path, DTYPES[dtype]) for path in self.paths]
        self._ends = np.cumsum([len(held) for held in self._maps], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, start: int, length: int) -> np.ndarray:
        """(length,) int64 ids from position `start`; crosses shard borders.

        Raises:
            IndexError: part of the range lies outside.
            DataError: an id is not in the vocabulary.
        """
        found = np.empty((1, length), dtype=np.int64)
        if start < 0 or length < 0 or start + length > len(self):
            raise IndexError(f"{start}:{start + length} of {len(self)} tokens")
        self._copy(start, found[0])
        self._check(found)
        return found[0]

    def rows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """(rows, length) int64: `length` ids from each start, the first following the last.

        Args:
            starts: (rows,) integers in [0, len(self)).
            length: at most len(self).
        """
        found = np.empty((len(starts), length), dtype=np.int64)
        total = len(self)
        for row, start in zip(found, starts.tolist(), strict=True):
            inside = min(length, total - start)
            self._copy(start, row[:inside])
            if inside < length:
                self._copy(0, row[inside:])
        self._check(found)
        return found

    def pieces(self, size: int = PIECE) -> Iterator[np.ndarray]:
        """All ids in order, at most `size` at a time, in the files' own dtype and unchecked."""
        for held in self._maps:
            for start in range(0, len(held), size):
                yield held[start : start + size]

    def largest(self) -> int:
        """The largest id; reads everything."""
        return max((int(piece.max()) for piece in self.pieces()), default=-1)

    def check_vocabulary(self) -> None:
        """Look for ids outside the vocabulary: everywhere up to `FULL_CHECK` tokens, else in
        evenly spread pieces of that many together. What is missed here, reading finds.

        Raises:
            DataError: names the file, the position and the id.
        """
        stride = -(-len(self) // FULL_CHECK)
        for path, held in zip(self.paths, self._maps, strict=True):
            for start in range(0, len(held), PIECE * max(1, stride)):
                piece = held[start : start + PIECE]
                if int(piece.max()) >= self.vocab_size:
                    at = int(np.argmax(piece >= self.vocab_size))
                    raise self._outside(int(piece[at]), f"{path} (token {start + at})")

    def _copy(self, start: int, into: np.ndarray) -> None:
        """Fill `into` from position `start`; the caller knows that the range lies inside."""
        shard = int(np.searchsorted(self._ends, start, side="right")) if len(self._maps) > 1 else 0
        done = 0
        while done < len(into):
            held = self._maps[shard]
            offset = start + done - (int(self._ends[shard]) - len(held))
            taken = min(len(into) - done, len(held) - offset)
            into[done : done + taken] = held[offset : offset + taken]
            done += taken
            shard += 1

    def _check(self, found: np.ndarray) -> None:
        if found.size and int(found.max()) >= self.vocab_size:
            raise self._outside(int(found.max()), str(self.paths[0]))

    def _outside(self, token: int, where: str) -> DataError:
        return DataError(
            f"token id {token} is not in the vocabulary of {self.vocab_size}",
            where=where,
            why="the file was written with another tokenizer or another integer type",
            fix="prepare the text again, or set data.token_dtype to the type it was written with",
        )


@dataclass(frozen=True)
class Dataset:
    """Tokens to train on, tokens held out, and what they mean."""

    train: Tokens
    val: Tokens | None
    tokenizer: Tokenizer | None
    vocab_size: int
    """Ids are below it: the tokenizer's size, or the largest id plus one where there is none."""
    eot_id: int | None
    fingerprint: str
    """Identifies tokens, split and tokenizer, not the folder's place or the sources' names."""
    description: dict[str, Any]
    """For the report: sources, counts, bytes, how it was split."""

    def val_bytes(self, limit: int = 0) -> bytes | None:
        """The held-out text as bytes, without special tokens; `limit` tokens of it, 0 for all.
        None without a tokenizer or a held-out split."""
        return None if self.val is None else self._bytes(self.val, limit)

    def train_bytes(self, limit: int = 0) -> bytes | None:
        """The training text as bytes, as `val_bytes` does."""
        return self._bytes(self.train, limit)

    def _bytes(self, tokens: Tokens, limit: int) -> bytes | None:
        if self.tokenizer is None:
            return None
        table = [self.tokenizer.token_bytes(token) for token in range(self.vocab_size)]
        left, parts = limit or len(tokens), []
        for piece in tokens.pieces(1 << 20):
            parts.append(b"".join([table[token] for token in piece[:left].tolist()]))
            left -= len(piece)
            if left <= 0:
                break
        return b"".join(parts)


def is_dataset(folder: Path) -> bool:
    """Whether `open_dataset` would read this folder."""
    return (folder / FACTS).is_file() or (folder / "train.bin").is_file()


def named_dataset(paths: Sequence[str]) -> Path | None:
    """The folder that paths name, if it is one alone and a dataset; `~` is the user's home."""
    folder = Path(paths[0]).expanduser() if len(paths) == 1 else None
    return folder if folder is not None and is_dataset(folder) else None


def open_dataset(
    folder: Path,
    *,
    token_dtype: str = "uint16",
    tokenizer: Tokenizer | None = None,
    verify: bool = False,
) -> Dataset:
    """Open a prepared dataset, or nanoGPT's folder of `train.bin` and `val.bin`.

    Sizes are compared with the manifest always, contents where asked.

    Args:
        folder: where the files are.
        token_dtype: of a headerless `train.bin`; a prepared dataset knows its own.
        tokenizer: of a headerless `train.bin` that brings no `meta.pkl`.
        verify: read everything and compare it with the hashes in the manifest.

    Raises:
        DataError: no dataset there, a file is missing or has another size, an id does not fit.
        RunError: `verify` found a file that differs from its manifest.
    """
    if (folder / FACTS).is_file():
        if verify:
            files.verify(folder)
        return _open_prepared(folder)
    if (folder / "train.bin").is_file():
        return _open_headerless(folder, token_dtype, tokenizer)
    raise DataError(
        "holds no prepared dataset",
        where=str(folder),
        why=f"there is neither {FACTS} nor train.bin",
        fix="sparrow data prepare INPUT --tokenizer T --out DIR",
    )


def _open_prepared(folder: Path) -> Dataset:
    from sparrowlm.text.tokenizer import load_tokenizer

    facts = files.read_json(folder / FACTS)
    if facts.get("format") != FORMAT:
        raise DataError(
            f"is of format {facts.get('format')}, and this version reads {FORMAT}",
            where=str(folder / FACTS),
            fix="prepare the text again",
        )
    manifest = files.read_json(folder / files.MANIFEST)["files"]
    _check_sizes(folder, manifest)
    tokenizer = load_tokenizer(folder / "tokenizer")
    if tokenizer.fingerprint != facts["tokenizer"]["fingerprint"]:
        raise TokenizerError(
            "is not the tokenizer that the tokens were made with",
            where=str(folder / "tokenizer"),
            fix="restore the folder, or prepare the text again",
        )

    def split(name: str) -> Tokens:
        shards = [folder / shard["file"] for shard in facts["splits"][name]["shards"]]
        starts = _map(folder / f"{name}-documents.u64", np.dtype("<u8"))
        return Tokens(shards, facts["dtype"], facts["vocab_size"], starts)

    return Dataset(
        train=split("train"),
        val=split("val") if "val" in facts["splits"] else None,
        tokenizer=tokenizer,
        vocab_size=facts["vocab_size"],
        eot_id=facts["eot_id"],
        fingerprint=_prepared_fingerprint(facts, manifest),
        description=facts,
    )


def sizes_match(folder: Path) -> bool:
    """Whether a prepared dataset's files are there in the sizes that its manifest says."""
    try:
        _check_sizes(folder, files.read_json(folder / files.MANIFEST)["files"])
    except UserError:
        return False
    return True


def _check_sizes(folder: Path, manifest: dict[str, dict[str, Any]]) -> None:
    for name, entry in manifest.items():
        path = folder / name
        held = path.stat().st_size if path.is_file() else None
        if held != entry["bytes"]:
            raise DataError(
                f"has {held} bytes, and the manifest says {entry['bytes']}"
                if held is not None
                else "is missing though the manifest lists it",
                where=str(path),
                fix="restore the file, or prepare the text again",
            )


def _prepared_fingerprint(facts: dict[str, Any], manifest: dict[str, dict[str, Any]]) -> str:
    """Of the tokens, their documents and the tokenizer: the folder may move."""
    kept = {
        name: entry["sha256"] for name, entry in manifest.items() if name.endswith((".bin", ".u64"))
    }
    told = [facts["dtype"], facts["tokenizer"]["fingerprint"], sorted(kept.items())]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _open_headerless(folder: Path, dtype: str, tokenizer: Tokenizer | None) -> Dataset:
    """nanoGPT's folder. Without `meta.pkl` and tokenizer, the vocabulary is the largest id + 1."""
    paths = {name: folder / f"{name}.bin" for name in ("train", "val")}
    present = {name: path for name, path in paths.items() if path.is_file()}
    meta = folder / "meta.pkl"
    if tokenizer is None and meta.is_file():
        tokenizer, vocab_size = _read_meta(meta)
    else:
        vocab_size = tokenizer.vocab_size if tokenizer is not None else 0
    whole = 1 << 32
    splits = {n: Tokens([path], dtype, vocab_size or whole) for n, path in present.items()}
    if not vocab_size:
        vocab_size = 1 + max(tokens.largest() for tokens in splits.values())
        for tokens in splits.values():
            tokens.vocab_size = vocab_size
    for tokens in splits.values():
        if not len(tokens):
            raise DataError("is empty", where=str(tokens.paths[0]))
        tokens.check_vocabulary()
    return Dataset(
        train=splits["train"],
        val=splits.get("val"),
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        eot_id=None if tokenizer is None else tokenizer.eot_id,
        fingerprint=_headerless_fingerprint(present, dtype),
        description={
            "format": "nanogpt",
            "dtype": dtype,
            "vocab_size": vocab_size,
            "splits": {name: {"tokens": len(tokens)} for name, tokens in splits.items()},
            "split": {"rule": "given", "reason": "the folder has its own files"},
            "notes": [],
            "sources": [{"path": str(path)} for path in present.values()],
        },
    )


def _read_meta(path: Path) -> tuple[Tokenizer | None, int]:
    """The vocabulary in nanoGPT's `meta.pkl`: a tokenizer where each id stands for one
    character (None otherwise), and the size it names.

    Raises:
        DataError: the file does not say what nanoGPT's says.
    """
    from sparrowlm.text.tokenizer import character_tokenizer

    meta = files.read_foreign(path)
    itos = meta.get("itos") if isinstance(meta, dict) else None
    size = meta.get("vocab_size") if isinstance(meta, dict) else None
    if not isinstance(size, int) or size < 1:
        raise DataError("names no vocab_size", where=str(path), fix="remove it, or mend it")
    if not isinstance(itos, dict) or sorted(itos) != list(range(size)):
        return None, size
    texts = [itos[token] for token in range(size)]
    if len({text for text in texts if isinstance(text, str) and len(text) == 1}) != size:
        return None, size
    return character_tokenizer(texts), size


def _headerless_fingerprint(paths: dict[str, Path], dtype: str) -> str:
    """Sizes and contents: whole files up to 64 MiB, 64 evenly spread MiB of larger ones."""
    digest = hashlib.sha256(dtype.encode())
    for name, path in sorted(paths.items()):
        size = path.stat().st_size
        digest.update(f"{name} {size}\n".encode())
        with path.open("rb") as file:
            for start in _spread(size):
                file.seek(start)
                digest.update(file.read(BLOCK))
    return digest.hexdigest()


def _spread(size: int) -> list[int]:
    """Offsets of the blocks that are hashed; the first and the last block are among them."""
    if size <= SPREAD * BLOCK:
        return list(range(0, size, BLOCK))
    return [index * (size - BLOCK) // (SPREAD - 1) for index in range(SPREAD)]


def _map(path: Path, dtype: np.dtype[Any]) -> np.ndarray:
    """A file as a read-only array, without its contents being read."""
    try:
        size = path.stat().st_size
    except FileNotFoundError as fault:
        raise DataError("is missing", where=str(path), fix="prepare the text again") from fault
    if size % dtype.itemsize:
        raise DataError(
            f"has {size} bytes, which is no whole number of {dtype.name}",
            where=str(path),
            why="it is cut short, or was written with another integer type",
            fix="copy it again, or set data.token_dtype",
        )
    if size == 0:
        return np.empty(0, dtype)  # an empty file cannot be mapped
    # As a plain array: slicing np.memmap costs three times as much.
    return np.memmap(path, dtype, mode="r").view(np.ndarray)
