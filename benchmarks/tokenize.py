"""Encoding speed beside `tokenizers` and tiktoken, on the same text with the same ids.

    python benchmarks/tokenize.py --file data/corpus.txt --rounds 7

A vocabulary is trained on the text (6,400 entries, Qwen2's pattern), then every engine encodes
all of it in turn (A B C A B C …), with two threads each: `Tokenizer.encode_batch` with the engine
it chooses and, where that is gigatoken, with the one it takes without it; `encode_batch` of
`tokenizers`; `encode_ordinary_batch` of tiktoken on the same merges. Engines, once warm, must give
the same ids. Medians over the rounds.

The text is the standard library's source unless --file names another. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def stand_aside() -> None:
    """Be the standard library's `tokenize`, which this file hides from whatever runs beside it:
    Python puts a script's own folder first on the path, and `linecache` wants that module."""
    import importlib.util

    place = Path(sysconfig.get_path("stdlib")) / "tokenize.py"
    spec = importlib.util.spec_from_file_location("tokenize", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tokenize"] = module
    spec.loader.exec_module(module)


def main() -> None:
    """Measure and print the JSON line."""
    parser = argparse.ArgumentParser(description="Encoding speed beside tokenizers and tiktoken.")
    parser.add_argument("--file", action="append", default=[], help="text; may be given again")
    parser.add_argument("--megabytes", type=float, default=10.0, help="of text at most")
    parser.add_argument("--vocab-size", type=int, default=6400)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="after one that does not count")
    options = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(options.threads)  # read when `tokenizers` starts
    texts = read_texts(options.file, options.megabytes * 1e6)
    result = compare(texts, options.vocab_size, options.threads, options.rounds)
    result["conditions"]["files"] = options.file or "standard library"
    print(json.dumps(result))


def read_texts(paths: list[str], limit: float) -> list[str]:
    """Documents of the files, or of the standard library, up to `limit` bytes."""
    from sparrowlm.data.corpus import standard_library
    from sparrowlm.text.documents import Document, find_inputs, read_documents

    files = find_inputs(paths) if paths else [path for _, path in standard_library()]
    texts, size = [], 0
    for row in (row for file in files for row in read_documents(file)):
        if isinstance(row, Document) and size < limit:
            texts.append(row.text)
            size += len(row.text.encode())
    return texts


def compare(texts: list[str], vocab_size: int, threads: int, rounds: int) -> dict[str, Any]:
    """Train, check the ids, and time every engine in turn."""
    from importlib.metadata import version
    from statistics import median

    from sparrowlm.config import TokenizerConfig
    from sparrowlm.runtime import machine
    from sparrowlm.text.tokenizer import train_tokenizer

    size = sum(len(text.encode()) for text in texts)
    began = time.perf_counter()
    tokenizer = train_tokenizer(texts, TokenizerConfig(vocab_size=vocab_size))
    trained = time.perf_counter() - began
    ways = engines(tokenizer, texts, threads)
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, encode in ways.items():
            began = time.perf_counter()
            encode()
            if turn:  # the first warms caches
                spent[name].append(size / 1e6 / (time.perf_counter() - began))
    speeds = {name: round(median(values), 2) for name, values in spent.items()}
    return {
        "benchmark": "tokenize",
        "machine": machine(),
        "conditions": {
            "bytes": size,
            "documents": len(texts),
            "vocab_size": tokenizer.vocab_size,
            "threads": threads,
            "rounds": rounds,
            "versions": {name: version(name) for name in ("tokenizers", "tiktoken")},
        },
        "engine": tokenizer.engine,
        "notes": tokenizer.notes,
        "ids_equal": True,
        "megabytes_per_second": speeds,
        "times_tokenizers": {
            name: round(speed / speeds["tokenizers"], 2) for name, speed in speeds.items()
        },
        "training_megabytes_per_second": round(size / 1e6 / trained, 2),
    }


def engines(tokenizer: Any, texts: list[str], threads: int) -> dict[str, Callable[[], Any]]:
    """Name to one pass over the text; every one has been checked against `tokenizers`."""
    import tempfile

    import tiktoken
    import tokenizers

    from sparrowlm.text.definition import PATTERNS
    from sparrowlm.text.encoders import ReferenceEncoder
    from sparrowlm.text.fast import TiktokenEncoder, ranks_of

    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        raw = tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        definition = json.loads((Path(folder) / "tokenizer.json").read_text(encoding="utf-8"))
    raw.encode_special_tokens = True  # a literal special in the text stays text
    expected = [encoding.ids for encoding in raw.encode_batch(texts, add_special_tokens=False)]
    table = ranks_of(definition, ReferenceEncoder(definition).raw)
    assert table is not None, "these merges are left to tokenizers"
    ours = TiktokenEncoder(PATTERNS["qwen2"], *table)
    plain = tiktoken.Encoding(
        "benchmark", pat_str=PATTERNS["qwen2"], mergeable_ranks=table[0], special_tokens={}
    )
    ids = table[1].tolist()
    ways: dict[str, Callable[[], Any]] = {
        "sparrow": lambda: tokenizer.encode_batch(texts, threads=threads),
        "tokenizers": lambda: raw.encode_batch(texts, add_special_tokens=False),
        "tiktoken": lambda: plain.encode_ordinary_batch(texts, num_threads=threads),
    }
    if tokenizer.engine != ours.name:
        ways["sparrow without gigatoken"] = lambda: ours.encode_batch(texts, threads)
    assert [found.tolist() for found in ways["sparrow"]()] == expected
    assert [found.tolist() for found in ours.encode_batch(texts, threads)] == expected
    assert [[ids[rank] for rank in ranks] for ranks in ways["tiktoken"]()] == expected
    return ways


if __name__ == "__main__":
    main()
elif __name__ == "tokenize":
    stand_aside()
