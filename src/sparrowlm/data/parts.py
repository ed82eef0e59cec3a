"""`prepare` in parts: for corpora that one machine takes too long over.

    every source -> its part (any machine, any order) -> merge -> train, val -> manifest

`EncodeParts` and `MergeParts` are steps of a datatrove pipeline, called with a rank and a number
of ranks, so its local, Ray and Slurm executors run them; see docs/large-corpora.md. They need
datatrove neither to be imported nor to be tested.

A part is one source's tokens and table of pieces, a published folder with a manifest, named by
its place among the sources. It depends on nothing but its source, the tokenizer and the settings,
so ranks may come and go, and a part that is whole is never made again. What needs the whole, the
rule of the split above all, is decided in the merge, by the same code and from the same numbers as
in one process. So the dataset is the same, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparrowlm import files
from sparrowlm.config.schema import DataConfig
from sparrowlm.data.build import REJECTED, fill, finish, id_dtype
from sparrowlm.data.cache import READING
from sparrowlm.data.clean import wants_cleaning
from sparrowlm.data.encode import Encoder
from sparrowlm.data.lock import locked
from sparrowlm.data.prepare import told_of
from sparrowlm.data.reader import SHOWN, Reader
from sparrowlm.data.shards import sizes_match
from sparrowlm.data.sources import Source, as_sources
from sparrowlm.data.split import PIECE, Tally, check_share
from sparrowlm.data.writer import Spool
from sparrowlm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from sparrowlm.text.tokenizer import Tokenizer

PART = "part.json"
COUNTED = ("accepted", "rejected", "shown", "parted", "empty")
"""What a reader met: in part.json for one source, added up in the merge."""
NAMED = 3  # missing sources named in a message
TABLE_ROWS = 1 << 20  # of a part's table copied together


@dataclass(frozen=True)
class Job:
    """One dataset to prepare in parts; the same value goes to every rank."""

    inputs: tuple[str, ...]
    """Files, folders or globs, on a disk that every machine sees under this name."""
    tokenizer: str
    """A tokenizer's folder there, or "bytes"."""
    out: str
    """The dataset's folder. Its parts go beside it, into `out` + ".parts"."""
    config: DataConfig = field(default_factory=DataConfig)

    @property
    def parts(self) -> Path:
        """Where parts are kept; may be removed once the dataset is there."""
        return Path(f"{self.out}.parts")

    def sources(self, passed_over: Counter[str] | None = None) -> list[Source]:
        """The input's files, in the order of the dataset; `passed_over` counts what is left out."""
        return as_sources(self.inputs, self.config.mirror, passed_over)

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer, from its folder."""
        from sparrowlm.text.tokenizer import open_tokenizer

        return open_tokenizer(self.tokenizer)

    def part(self, number: int) -> Path:
        """The folder of source `number`."""
        return self.parts / f"{number:06d}"

    def key(self, source: Source, tokenizer: Tokenizer) -> str:
        """What a part was made from: of its source the path, size and time of change, since
        reading it all again is what parts are to spare."""
        facts = source.path.stat()
        settings = {name: getattr(self.config, name) for name in READING}
        told = [str(source.path), facts.st_size, facts.st_mtime_ns, tokenizer.fingerprint, settings]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()


@dataclass(frozen=True)
class EncodeParts:
    """The first step: rank r of n encodes sources r, r + n, r + 2n …, those whose part is not
    there yet."""

    job: Job

    def __call__(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        """Make this rank's parts; `data` is passed on untouched.

        Raises:
            DataError: as `prepare`.
            ConfigError: cleaning is asked for, which looks at all documents together.
        """
        check_share(self.job.config)
        if wants_cleaning(self.job.config.clean):
            raise ConfigError("needs one `sparrow data prepare` of it all", where="data.clean")
        tokenizer = self.job.load_tokenizer()
        sources = self.job.sources()
        for number in range(rank, len(sources), world_size):
            if not is_part(self.job, number, sources[number], tokenizer):
                write_part(self.job, number, sources[number], tokenizer)
        return data


@dataclass(frozen=True)
class MergeParts:
    """The second step, for one rank, once all parts are there."""

    job: Job

    def __call__(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        """Write the dataset; `data` is passed on untouched.

        Raises:
            DataError: parts are missing, or no text at all.
            RunError: the dataset exists, or another process writes it.
        """
        if rank == 0:
            merge(self.job)
        return data


def is_part(job: Job, number: int, source: Source, tokenizer: Tokenizer) -> bool:
    """Whether a part is there, whole, and made from what it would be made from now."""
    folder = job.part(number)
    if not (folder / PART).is_file() or not sizes_match(folder):
        return False
    return files.read_json(folder / PART).get("key") == job.key(source, tokenizer)


def write_part(job: Job, number: int, source: Source, tokenizer: Tokenizer) -> None:
    """Encode one source. A part of something else that is in its place gives way."""
    key = job.key(source, tokenizer)  # before reading: a source that changes meanwhile shows
    folder = job.part(number)
    alone = replace(job.config, workers=1)  # the ranks are the workers
    with locked(folder, wait=True):
        files.sweep(job.parts, folder.name)
        with files.publish(folder, replace=True) as work:
            spool = Spool(work, id_dtype(tokenizer))
            reader = Reader([source], alone, work / REJECTED)
            fill(spool, Tally(), reader, _encoder(job, tokenizer), None)
            spool.finish()
            met = {name: getattr(reader, name) for name in COUNTED}
            files.write_json(work / PART, {"key": key} | met)


def merge(job: Job) -> dict[str, Any]:
    """All parts to one dataset, in the order of the sources.

    Returns:
        What `dataset.json` says.

    Raises:
        DataError: parts are missing, or no text at all.
        RunError: the dataset exists, or another process writes it.
    """
    passed_over: Counter[str] = Counter()
    tokenizer, sources, out = job.load_tokenizer(), job.sources(passed_over), Path(job.out)
    parts = [job.part(number) for number in range(len(sources))]
    _check_whole(job, sources, tokenizer)
    with locked(out, wait=False):
        files.sweep(out.parent, out.name)
        with files.publish(out) as work:
            (work / "tokenizer").mkdir()
            tokenizer.save(work / "tokenizer")
            spool, tally = PartSpool(work, id_dtype(tokenizer), parts), Tally()
            reader = Reader(sources, job.config, told=told_of(passed_over))
            for part in parts:
                _gather(part, spool, tally, reader)
            return finish(spool, tally, reader, _encoder(job, tokenizer))


class PartSpool(Spool):
    """A spool whose tokens stay where they are, in parts; only the table is gathered."""

    def __init__(self, folder: Path, dtype: np.dtype[Any], parts: list[Path]) -> None:
        super().__init__(folder, dtype)
        self._parts = parts

    def ids(self) -> Iterator[np.ndarray]:
        """Every shard of every part, in order; nothing is deleted."""
        for part in self._parts:
            for path in sorted(part.glob("spool-*.bin")):
                yield np.fromfile(path, self.shards.dtype)


def _gather(part: Path, spool: PartSpool, tally: Tally, reader: Reader) -> None:
    """Add a part's table, and what its reader met."""
    none = np.empty(0, spool.shards.dtype)
    with (part / "spool.table").open("rb") as file:
        while len(table := np.fromfile(file, PIECE, TABLE_ROWS)):
            spool.append(none, table)
            tally.add(table)
    met = files.read_json(part / PART)
    for name in COUNTED:
        setattr(reader, name, getattr(reader, name) + met[name])
    reader.shown = reader.shown[:SHOWN]
    if (part / REJECTED).is_file():
        out = spool.shards.folder / REJECTED
        with files.disk_faults(out), out.open("ab") as to, (part / REJECTED).open("rb") as listed:
            shutil.copyfileobj(listed, to)


def _check_whole(job: Job, sources: list[Source], tokenizer: Tokenizer) -> None:
    missing = [
        str(source.path)
        for number, source in enumerate(sources)
        if not is_part(job, number, source, tokenizer)
    ]
    if missing:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise DataError(
            f"{len(missing)} of {len(sources)} parts are missing or older than their source: "
            + ", ".join(missing[:NAMED])
            + more,
            where=str(job.parts),
            fix="run EncodeParts again, with a new logging_dir or skip_completed=False; "
            "the parts that are there are kept",
        )


def _encoder(job: Job, tokenizer: Tokenizer) -> Encoder:
    return Encoder(tokenizer, id_dtype(tokenizer), job.config.val_fraction)
