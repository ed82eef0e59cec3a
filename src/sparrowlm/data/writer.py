"""Token ids to files: shards of a split, and the spool that they are dealt out from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sparrowlm.data.split import HELD_OUT, PIECE, STARTS
from sparrowlm.files import disk_faults

SHARD = 1 << 28  # tokens in a shard of a split: 512 MiB of uint16
SPOOL_SHARD = 1 << 24  # a spool is deleted shard by shard while it is read
DEALT = 1 << 22  # tokens dealt out together


def raw(values: np.ndarray, dtype: np.dtype[Any]) -> memoryview:
    """The bytes of an array. Not `tofile`: where the disk is full, that raises without a code."""
    return np.ascontiguousarray(values, dtype).data


class ShardWriter:
    """A split on its way to the disk.

    Args:
        folder: an existing folder.
        name: of the split.
        dtype: of the ids on disk, little-endian.
        shard: tokens in one file.
    """

    def __init__(self, folder: Path, name: str, dtype: np.dtype[Any], shard: int = SHARD) -> None:
        self.folder, self.name, self.dtype, self.shard = folder, name, dtype, shard
        self.counts: list[int] = []
        self.tokens = 0
        self._file: BinaryIO | None = None

    def path(self, number: int) -> Path:
        return self.folder / f"{self.name}-{number:05d}.bin"

    def append(self, ids: np.ndarray) -> None:
        """Write (n,) ids of the writer's dtype."""
        with disk_faults(self.folder):
            while len(ids):
                if self._file is None or self.counts[-1] == self.shard:
                    self._file = self._next()
                taken = ids[: self.shard - self.counts[-1]]
                self._file.write(raw(taken, self.dtype))
                self.counts[-1] += len(taken)
                self.tokens += len(taken)
                ids = ids[len(taken) :]

    def close(self) -> list[dict[str, Any]]:
        """Finish; the shards and their sizes, as `dataset.json` lists them."""
        if self._file is not None:
            with disk_faults(self.folder):
                self._file.close()
        return [
            {"file": self.path(number).name, "tokens": count}
            for number, count in enumerate(self.counts)
        ]

    def _next(self) -> BinaryIO:
        if self._file is not None:
            self._file.close()
        self.counts.append(0)
        return self.path(len(self.counts) - 1).open("wb")


class SplitWriter:
    """Shards of a split, where its documents start, hashes of their texts, and its sums."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype[Any], shard: int = SHARD) -> None:
        self.shards = ShardWriter(folder, name, dtype, shard)
        self.documents = self.bytes = 0
        self._starts = (folder / f"{name}-documents.u64").open("wb")
        self._texts = (folder / f"{name}-texts.hash").open("wb")

    def append(self, ids: np.ndarray, table: np.ndarray) -> None:
        """Write the pieces of `table`, whose ids are `ids`, one after the other."""
        lengths = table["tokens"].astype(np.int64)
        starts = self.shards.tokens + np.cumsum(lengths) - lengths
        begins = (table["flags"] & STARTS) > 0
        starts = starts[begins]
        self.shards.append(ids)
        with disk_faults(self.shards.folder):
            self._starts.write(raw(starts, np.dtype("<u8")))
            self._texts.write(raw(table["text"][begins], np.dtype("<u8")))
        self.documents += len(starts)
        self.bytes += int(table["bytes"].sum())

    def close(self) -> dict[str, Any]:
        """Finish; what `dataset.json` says of the split."""
        with disk_faults(self.shards.folder):
            self._starts.close()
            self._texts.close()
        return {
            "tokens": self.shards.tokens,
            "documents": self.documents,
            "bytes": self.bytes,
            "shards": self.shards.close(),
        }


class Spool:
    """All tokens in the order of the sources, and the table of their pieces; on disk, since
    neither need fit into memory. Read once, and gone shard by shard while that happens."""

    def __init__(self, folder: Path, dtype: np.dtype[Any], shard: int = SPOOL_SHARD) -> None:
        self.shards = ShardWriter(folder, "spool", dtype, shard)
        self.pieces = 0
        self._path = folder / "spool.table"
        self._table = self._path.open("wb")

    def append(self, ids: np.ndarray, table: np.ndarray) -> None:
        """Add pieces: their (tokens,) ids and their (pieces,) rows of dtype `PIECE`."""
        self.shards.append(ids)
        with disk_faults(self._path):
            self._table.write(raw(table, PIECE))
        self.pieces += len(table)

    def finish(self) -> np.ndarray:
        """The whole table, memory-mapped; nothing can be added any more."""
        self.shards.close()
        with disk_faults(self._path):
            self._table.close()
        if not self.pieces:
            return np.empty(0, PIECE)
        return np.memmap(self._path, PIECE, mode="r").view(np.ndarray)

    def ids(self) -> Iterator[np.ndarray]:
        """Every shard in order, deleted once the next one is asked for."""
        for number, count in enumerate(self.shards.counts):
            path = self.shards.path(number)
            yield np.fromfile(path, self.shards.dtype, count)
            path.unlink()

    def remove(self) -> None:
        """Delete the table; every array from `finish` must be gone (Windows holds mapped files)."""
        self._path.unlink()


class Dealer:
    """Takes pieces off a spool in order and hands them to the splits."""

    def __init__(self, spool: Spool, train: SplitWriter, val: SplitWriter | None) -> None:
        self.sides = (train, val)
        self._ids = spool.ids()
        self._held = np.empty(0, spool.shards.dtype)

    def take(self, count: int) -> np.ndarray:
        """The next `count` ids."""
        parts = []
        while count > len(self._held):
            parts.append(self._held)
            count -= len(self._held)
            self._held = next(self._ids)
        parts.append(self._held[:count])
        self._held = self._held[count:]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def deal(self, table: np.ndarray, side: int | None = None) -> None:
        """Hand out the next pieces.

        Args:
            table: their rows.
            side: 0 train, 1 held out; None: as each piece's flag says.
        """
        first = 0
        while first < len(table):
            window = table[first : first + (1 << 16)]
            ends = np.cumsum(window["tokens"], dtype=np.int64)
            window = window[: max(1, int(np.searchsorted(ends, DEALT, side="right")))]
            ids = self.take(int(ends[len(window) - 1]))
            if side is None:
                # Each side in one piece: no work is done document by document.
                out = (window["flags"] & HELD_OUT) > 0
                spread = np.repeat(out, window["tokens"].astype(np.int64))
                self.give(0, ids[~spread], window[~out])
                self.give(1, ids[spread], window[out])
            else:
                self.give(side, ids, window)
            first += len(window)

    def finish(self) -> None:
        """Let the last shard of the spool go."""
        if next(self._ids, None) is not None:
            raise AssertionError("the spool holds more than its table says")

    def give(self, side: int, ids: np.ndarray, table: np.ndarray) -> None:
        """Hand pieces to a side: their ids and rows."""
        writer = self.sides[side]
        if len(table) and writer is not None:
            writer.append(ids, table)
