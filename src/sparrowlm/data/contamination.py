"""Whether held-out text was trained on.

Every document has a 64-bit hash of its text without ASCII white space and case
(`likeness.same_text`), kept beside each split, 8 bytes a document. By hash of the text the split
itself puts equal texts on one side; what is found here are texts that differ in white space or
case, copies across a split by position or by group, and copies among the sources of a mixture.
Texts that quote each other or were edited are not found: `data.clean.dedup = "near"` removes
those. A document of over two million characters is known by its first two million.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparrowlm.data.likeness import text_hash
from sparrowlm.data.reader import Reader
from sparrowlm.data.tokens import are_tokens

HASH = np.dtype("<u8")
WINDOW = 1 << 20  # training documents looked at together
NO_TEXT = text_hash(b"")  # of an empty document, and of one of white space
NAMED = 3  # texts of which examples are given
CONTAMINATED = "contaminated:"  # how such a note begins
FIX = 'data.clean.dedup = "exact" (--dedup exact) removes copies'


def texts_path(folder: Path, split: str) -> Path:
    """Where a prepared dataset keeps the hashes of a split's documents."""
    return folder / f"{split}-texts.hash"


def text_hashes(folder: Path, split: str) -> np.ndarray:
    """(documents,) uint64; empty where there is no such split, or it was prepared without."""
    path = texts_path(folder, split)
    if not path.is_file() or not path.stat().st_size:
        return np.empty(0, HASH)
    return np.memmap(path, HASH, mode="r").view(np.ndarray)


def trained_on(held_out: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Those of the held-out hashes (n,) that are among the training ones (m,), in their order.
    Documents without text, of which every one equals every other, are left out.

    Takes the memory of the held-out ones, three times.
    """
    held_out = held_out[held_out != NO_TEXT]
    known = np.unique(held_out)
    met = np.zeros(len(known), dtype=bool)
    for start in range(0, len(train) if len(known) else 0, WINDOW):
        window = train[start : start + WINDOW]
        at = np.minimum(np.searchsorted(known, window), len(known) - 1)
        met[at[known[at] == window]] = True
    return held_out[met[np.searchsorted(known, held_out)]] if met.any() else held_out[:0]


def places_of(reader: Reader, hashes: Sequence[int]) -> list[str]:
    """`file:line and file:line` of each text: the first two places where it stands. Reads the
    input again, up to the last of them."""
    found: dict[int, list[str]] = {wanted: [] for wanted in hashes}
    again = Reader(reader.sources, reader.config, cleaning=reader.cleaning)
    for source, piece in again.pieces():
        own = found.get(text_hash(piece.text.encode())) if piece.starts else None
        if own is not None and len(own) < 2:
            own.append(f"{source.path}:{piece.line or 1}")
            if all(len(places) == 2 for places in found.values()):
                break
    return [" and ".join(places) for places in found.values()]


def contamination(folder: Path, reader: Reader) -> dict[str, object]:
    """What a new dataset says of itself: how many held-out documents are trained on as well, and
    where some of them stand; {} where none are."""
    held_out = text_hashes(folder, "val")
    shared = trained_on(held_out, text_hashes(folder, "train"))
    if not len(shared):
        return {}
    examples: list[str] = []
    if not are_tokens(reader.sources):  # which have no lines to name
        examples = places_of(reader, list(dict.fromkeys(shared.tolist()))[:NAMED])
    return {"documents": len(shared), "held_out": len(held_out), "examples": examples}


def warnings(found: dict[str, object]) -> list[str]:
    """What a person should know of it: a sentence, or none."""
    if not found:
        return []
    examples = found["examples"]
    named = f", such as {'; '.join(examples)}" if isinstance(examples, list) and examples else ""
    count = f"{found['documents']:,} of {found['held_out']:,} held-out documents"
    told = f"{CONTAMINATED} {count} are trained on as well{named}"
    return [f"{told}; the held-out loss flatters. {FIX}"]
