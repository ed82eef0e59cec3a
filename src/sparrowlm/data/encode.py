"""Loads of text to token ids, several at once.

Small inputs are encoded by threads: the tokenizers release Python's lock. Large ones by
processes, since what Python does for each document would make threads wait for each other; they
are spawned, which every system can, and start with a tokenizer folder alone, without PyTorch.
Either way loads come back in their order, so the number of workers changes no byte.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sparrowlm.data.likeness import same_text
from sparrowlm.data.split import ENDS, PIECE, decided
from sparrowlm.errors import EnvironmentFault, TokenizerError
from sparrowlm.process import no_strays

if TYPE_CHECKING:
    from sparrowlm.text.tokenizer import Tokenizer

AHEAD = 3  # loads under way for each worker


class Load(NamedTuple):
    """Pieces that are encoded together."""

    texts: list[str]
    flags: list[int]  # of each piece
    read: int  # bytes read from all sources up to here


class Encoded(NamedTuple):
    """What became of a load."""

    ids: np.ndarray  # (tokens,)
    table: np.ndarray  # (pieces,) of dtype split.PIECE
    read: int


class Encoder:
    """Text to ids of the type on disk, each document followed by its end-of-text token."""

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype[Any], share: float) -> None:
        self.tokenizer, self.dtype, self.share = tokenizer, dtype, share
        self._end = [] if tokenizer.eot_id is None else [tokenizer.eot_id]

    def __call__(self, load: Load) -> Encoded:
        """Encode a load.

        Raises:
            TokenizerError: an id that is not in the vocabulary.
        """
        table = np.zeros(len(load.texts), PIECE)
        table["bytes"], table["flags"], table["text"] = self._look(load)
        table["characters"] = list(map(len, load.texts))
        found = self.tokenizer.encode_batch(load.texts, threads=1)
        lengths = np.fromiter(map(len, found), np.int64, len(found))
        ids = np.concatenate(found) if found else np.empty(0, np.uint32)
        if len(ids) and int(ids.max()) >= self.tokenizer.vocab_size:
            raise TokenizerError(
                f"made the id {int(ids.max())} with a vocabulary of {self.tokenizer.vocab_size}"
            )
        if self._end:
            ended = (table["flags"] & ENDS) > 0
            ids = np.insert(ids, np.cumsum(lengths)[ended], self._end[0])
            lengths += ended
        table["tokens"] = lengths
        return Encoded(ids.astype(self.dtype), table, load.read)

    def warm_up(self) -> None:
        """Let the tokenizer choose its engine, once, before threads ask it to."""
        self.tokenizer.encode_batch([""], threads=1)

    def piece(self, text: str, flag: int) -> tuple[np.ndarray, np.ndarray]:
        """One piece: its (tokens,) ids and its (1,) row of the table."""
        encoded = self(Load([text], [flag], 0))
        return encoded.ids, encoded.table

    def _look(self, load: Load) -> tuple[list[int], list[int], np.ndarray]:
        """UTF-8 bytes, decided flags and text hash of each piece."""
        sizes, flags, hashes = [], [], []
        for text, flag in zip(load.texts, load.flags, strict=True):
            content = text.encode()
            sizes.append(len(content))
            flags.append(decided(flag, content, self.share))
            hashes.append(same_text(content))
        return sizes, flags, np.frombuffer(b"".join(hashes), "<u8")[::2]


def encode_all(
    loads: Iterable[Load], encoder: Encoder, workers: int, folder: Path | None
) -> Iterator[Encoded]:
    """Encode loads in order, some ahead of what was taken.

    Args:
        loads: taken one by one, a few ahead.
        encoder: what encodes.
        workers: how many at once.
        folder: where the tokenizer is saved: encode in processes. None: in threads.

    Raises:
        EnvironmentFault: a worker process was killed.
    """
    if workers == 1 and folder is None:
        yield from map(encoder, loads)
        return
    with no_strays():
        pool, work = _pool(encoder, workers, folder)
        waiting: deque[Future[Encoded]] = deque()
        try:
            for load in loads:
                waiting.append(pool.submit(work, load))
                if len(waiting) > workers * AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as fault:
            raise EnvironmentFault(
                "a worker process was killed",
                where="sparrow data prepare",
                why="most often the memory was full",
                fix="run it again with fewer --workers",
            ) from fault
        finally:
            pool.shutdown(cancel_futures=True)


def _pool(
    encoder: Encoder, workers: int, folder: Path | None
) -> tuple[Executor, Callable[[Load], Encoded]]:
    if folder is None:
        encoder.warm_up()
        return ThreadPoolExecutor(workers), encoder
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(folder, encoder.dtype.str, encoder.share),
    )
    return pool, _work


_encoder: Encoder | None = None  # of a worker process


def _start_worker(folder: Path, dtype: str, share: float) -> None:
    from sparrowlm.text.tokenizer import load_tokenizer

    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_follow_parent, daemon=True).start()
    _encoder = Encoder(load_tokenizer(folder), np.dtype(dtype), share)
    _encoder.warm_up()


def _follow_parent() -> None:
    """End with the parent: one that is killed cannot tell its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(load: Load) -> Encoded:
    assert _encoder is not None, "the pool starts every worker with _start_worker"
    return _encoder(load)
