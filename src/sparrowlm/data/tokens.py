"""Token files: HDF5 with a dataset `tokens`, (N,) of integers, as the Pile's trainers write them.

They hold ids already, so they need the tokenizer they were made with and are not encoded. Where it
has an end-of-text token, that parts documents and all is as if the text had been given; elsewhere a
file is one document, and the held-out part is its end, as nanoGPT's is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparrowlm.data.encode import Encoded
from sparrowlm.data.likeness import text_hash
from sparrowlm.data.reader import Reader
from sparrowlm.data.split import ENDS, HASHED, HELD_OUT, PIECE, STARTS, falls_out
from sparrowlm.errors import ConfigError, DataError
from sparrowlm.text.documents import format_of
from sparrowlm.text.extras import need

if TYPE_CHECKING:
    from sparrowlm.data.sources import Source
    from sparrowlm.text.tokenizer import Tokenizer

KEY, MASK = "tokens", "loss_mask"
CHUNK = 1 << 20  # ids read at once


def are_tokens(sources: list[Source]) -> bool:
    """Whether the sources hold ids instead of text.

    Raises:
        DataError: some do and some do not.
    """
    kinds = {format_of(source.path) == "tokens": source for source in sources}
    if len(kinds) > 1:
        raise DataError(
            "holds tokens, and other inputs hold text",
            where=str(kinds[True].path),
            fix="prepare the two apart",
        )
    return True in kinds


def refuse_learning(sources: list[Source], kind: str) -> None:
    """
    Raises:
        ConfigError: the sources are tokens, and such a vocabulary, bpe or chars, is learned.
    """
    if are_tokens(sources):
        raise ConfigError(
            f'is "{kind}", which is learned from text, and the data is tokens already',
            where="tokenizer.kind",
            fix='name the one that made them: "folder" with tokenizer.path, "gpt2" or "bytes"',
        )


class TokenPieces:
    """All token files as encoded pieces, one batch for each chunk that is read.

    Args:
        reader: its sources are read; hears what was accepted and empty.
        tokenizer: the one that the ids were made with.
        dtype: of the ids on disk.
    """

    def __init__(self, reader: Reader, tokenizer: Tokenizer, dtype: np.dtype[Any]) -> None:
        self._reader, self._tokenizer, self._dtype = reader, tokenizer, dtype
        self._eot = -1 if tokenizer.eot_id is None else tokenizer.eot_id  # no id is below 0
        contents = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
        self._contents = contents
        self._sizes = np.array(list(map(len, contents)), np.int64)

    def batches(self) -> Iterator[Encoded]:
        """In the order of the sources and of their ids.

        Raises:
            DataError: a file is no token file, or an id is not in the vocabulary.
        """
        for source in self._reader.sources:
            starts, side, found = True, 0, False
            for ids, ends_file in self._whole_documents(source.path):
                lengths, ends = self._documents(ids, ends_file)
                table = self._table(ids, lengths)
                begins = 0
                for row, length, last in zip(table, lengths.tolist(), ends.tolist(), strict=True):
                    if starts:
                        side = self._side(ids[begins : begins + length])
                    row["flags"] = STARTS * starts | ENDS * last | side
                    self._reader.accepted += starts
                    starts, begins = last, begins + length
                found = True
                yield Encoded(ids.astype(self._dtype), table, self._reader.read)
            self._reader.read += source.path.stat().st_size
            if not found:
                self._reader.empty.append(str(source.path))

    def _whole_documents(self, path: Path) -> Iterator[tuple[np.ndarray, bool]]:
        """Chunks of ids, and whether each is the last. A document that begins in one and fits
        into the next is kept for that: its beginning decides its side."""
        kept, inside, position = np.empty(0, np.int64), False, 0
        for ids, last in read_tokens(path):
            self._check(path, ids, position)
            position += len(ids)
            ids = np.concatenate([kept, ids])
            stop = len(ids) if last else self._last_end(ids)
            if len(ids) - stop >= CHUNK or (inside and not stop):
                stop = len(ids)
            inside = stop > 0 and int(ids[stop - 1]) != self._eot
            kept = ids[stop:]
            if stop:
                yield ids[:stop], last

    def _last_end(self, ids: np.ndarray) -> int:
        """Behind the last end-of-text token; 0 where there is none."""
        stops = np.flatnonzero(ids == self._eot)
        return int(stops[-1]) + 1 if len(stops) else 0

    def halves(self, ids: np.ndarray, inside: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """A piece cut in two at id `inside`: the (n,) ids and (1,) row of each half."""
        parts = [ids[:inside], ids[inside:]]
        return [(part, self._table(part, np.array([len(part)]))) for part in parts]

    def _check(self, path: Path, ids: np.ndarray, before: int) -> None:
        size = self._tokenizer.vocab_size
        bad = (ids < 0) | (ids >= size)
        if bad.any():
            at = int(np.argmax(bad))
            raise DataError(
                f"token {before + at} is {int(ids[at])}, and the vocabulary has {size}",
                where=str(path),
                why="the ids were made with another tokenizer",
                fix="name the tokenizer that they were made with",
            )

    def _documents(self, ids: np.ndarray, last: bool) -> tuple[np.ndarray, np.ndarray]:
        """Of each piece in a chunk: its (pieces,) ids, and whether its document ends there."""
        stops = np.flatnonzero(ids == self._eot) + 1
        open_end = not len(stops) or stops[-1] != len(ids)
        ends = np.ones(len(stops) + open_end, bool)
        if open_end:
            stops = np.append(stops, len(ids))
            ends[-1] = last
        return np.diff(stops, prepend=0), ends

    def _table(self, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """(pieces,) of dtype `PIECE`. Positions are counted in ids, so `characters` holds ids."""
        table = np.zeros(len(lengths), PIECE)
        table["tokens"] = table["characters"] = lengths
        sums = np.concatenate([[0], np.cumsum(self._sizes[ids])])
        stops = np.cumsum(lengths)
        table["bytes"] = sums[stops] - sums[stops - lengths]
        pieces = np.split(ids, stops[:-1])
        table["text"] = [text_hash(self._content(piece)) for piece in pieces]
        return table

    def _content(self, ids: np.ndarray) -> bytes:
        """The UTF-8 text of some ids; an end-of-text token has none."""
        return b"".join([self._contents[token] for token in ids.tolist()])

    def _side(self, ids: np.ndarray) -> int:
        """The flag of a document that begins with `ids`: where its text would go."""
        if self._reader.config.split != "hash":
            return 0
        content = self._content(ids[:HASHED])
        return HELD_OUT * falls_out(content, self._reader.config.val_fraction)


def read_tokens(path: Path) -> Iterator[tuple[np.ndarray, bool]]:
    """The ids of a file in order: (n,) int64 of at most `CHUNK`, and whether they are the last.

    Raises:
        DataError: h5py is not installed; the file is not HDF5, or holds no (N,) integers `tokens`.
    """
    with _opened(path) as file:
        held = _integers(path, file, KEY)
        if held.ndim != 1:
            raise DataError(
                f"{KEY!r} has the shape {tuple(held.shape)}, and must be integers in a row",
                where=str(path),
                why="rows of a fixed length are a packed fine-tuning file" * (held.ndim == 2),
                fix='train on those with stage = "sft": data.path names the file itself',
            )
        for start in range(0, len(held), CHUNK):
            ids = held[start : start + CHUNK].astype(np.int64)
            yield ids, start + CHUNK >= len(held)


def read_packed(path: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The rows of a packed fine-tuning file in order, some at a time: (n, T) int64 ids and (n, T)
    of integers, as its mask holds them.

    Raises:
        DataError: h5py is not installed; the file is not HDF5, or does not hold the two.
    """
    with _opened(path) as file:
        held, mask = _integers(path, file, KEY), _integers(path, file, MASK)
        if held.ndim != 2 or held.shape != mask.shape:
            raise DataError(
                f"{KEY!r} has the shape {tuple(held.shape)} and {MASK!r} {tuple(mask.shape)};"
                " both must be (rows, tokens of a row)",
                where=str(path),
            )
        rows = max(1, CHUNK // max(1, held.shape[1]))
        for start in range(0, len(held), rows):
            yield held[start : start + rows].astype(np.int64), mask[start : start + rows]


def is_packed(path: Path) -> bool:
    """Whether a token file holds rows of a fixed length.

    Raises:
        DataError: as `read_packed`.
    """
    with _opened(path) as file:
        return _integers(path, file, KEY).ndim == 2


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An HDF5 file."""
    h5py = need("h5py", "hdf5", str(path))
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as fault:
        raise DataError(
            f"cannot be read: {fault}", where=str(path), fix="fetch it again"
        ) from fault


def _integers(path: Path, file: Any, key: str) -> Any:
    """A dataset of integers in an HDF5 file, as yet unread."""
    held = file.get(key)
    if held is None or not hasattr(held, "shape"):
        names = ", ".join(map(repr, list(file)[:5]))
        raise DataError(f"no dataset {key!r}; it has {names or 'none'}", where=str(path))
    if held.dtype.kind not in "iu":
        raise DataError(f"{key!r} is {held.dtype}, and must be integers", where=str(path))
    return held
