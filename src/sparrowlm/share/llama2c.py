"""llama2.c's own files: weights as plain float32 behind a short header, and its vocabulary."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import torch

from sparrowlm.errors import DataError, TokenizerError
from sparrowlm.share.opening import Opened, Tensors
from sparrowlm.text.definition import Merge, define
from sparrowlm.text.tokenizer import Tokenizer

HEADER: tuple[str, ...] = (
    "dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len",
)  # fmt: skip
MAGIC = 0x616B3432  # "ak42": the versions after the first one
HEADER_BYTES = 256  # of those versions

# The order of the tensors: top-level ones alone, the others for every layer in turn.
FIRST = (
    "tok_embeddings", "attention_norm", "attention.wq", "attention.wk", "attention.wv",
    "attention.wo", "ffn_norm", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "norm",
    "rotary angles", "output",
)  # fmt: skip
SECOND = (
    "attention_norm", "ffn_norm", "norm", "tok_embeddings", "attention.wq", "attention.wk",
    "attention.wv", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3",
    "output",
)  # fmt: skip
TOP = ("tok_embeddings", "norm", "output", "rotary angles")


def is_bin(path: Path) -> bool:
    """Whether a file is one of llama2.c's, by its header."""
    try:
        with path.open("rb") as file:
            head = file.read(4 * len(HEADER))
    except OSError:
        return False
    if len(head) < 4 * len(HEADER):
        return False
    if struct.unpack_from("<I", head)[0] == MAGIC:
        return True
    numbers = struct.unpack("<7i", head)
    return path.suffix == ".bin" and all(0 < abs(number) < 1 << 24 for number in numbers)


def read_bin(path: Path) -> Opened:
    """The tensors of a `.bin`, by the names of llama2.c's model, and its shape.

    Raises:
        DataError: quantized, or of another length than its header says.
    """
    head = path.read_bytes()[:HEADER_BYTES]
    magic, version = struct.unpack_from("<Ii", head)
    if magic == MAGIC and len(head) < HEADER_BYTES:
        raise DataError("is cut short within its header", where=str(path))
    if magic != MAGIC:
        shape = dict(zip(HEADER, struct.unpack_from("<7i", head), strict=True))
        shared, start, order = shape["vocab_size"] > 0, 4 * len(HEADER), FIRST
    elif version == 1:
        shape = dict(zip(HEADER, struct.unpack_from("<7i", head, 8), strict=True))
        shared, start, order = bool(head[36]), HEADER_BYTES, SECOND
    else:
        which = "rounds weights to int8" if version == 2 else "is not known"
        raise DataError(
            f"is version {version} of llama2.c's format, which {which}",
            where=str(path),
            fix="export it as version 0 or 1, or give the ckpt.pt it was made from",
        )
    shape["vocab_size"] = abs(shape["vocab_size"])  # below zero: the head is not shared
    if min(shape.values()) < 1 or shape["dim"] % shape["n_heads"]:
        raise DataError(f"has an impossible header: {shape}", where=str(path))
    names = order[:-1] if shared else order
    return Opened(path, _tensors(path, start, shape, names), shape)


def _tensors(path: Path, start: int, shape: dict[str, int], names: tuple[str, ...]) -> Tensors:
    sizes = _sizes(shape)
    counts = {
        name: (1 if name in TOP else shape["n_layers"]) * math.prod(sizes[name]) for name in names
    }
    wanted, held = start + 4 * sum(counts.values()), path.stat().st_size
    if held != wanted:
        raise DataError(
            f"is {held} bytes long, and its header promises {wanted}",
            where=str(path),
            why="it is cut short, or not a .bin of llama2.c",
        )
    numbers = np.fromfile(path, "<f4", offset=start)
    tensors, at = {}, 0
    for name, count in counts.items():
        values = torch.from_numpy(numbers[at : at + count])
        at += count
        if name == "rotary angles":
            continue
        if name in TOP:
            tensors[f"{name}.weight"] = values.view(sizes[name])
        else:
            for layer, weight in enumerate(values.view(-1, *sizes[name])):
                tensors[f"layers.{layer}.{name}.weight"] = weight
    return tensors


def _sizes(shape: dict[str, int]) -> dict[str, tuple[int, ...]]:
    width, inner = shape["dim"], shape["hidden_dim"]
    head = width // shape["n_heads"]
    keys = head * shape["n_kv_heads"]
    return {
        "tok_embeddings": (shape["vocab_size"], width),
        "attention_norm": (width,),
        "attention.wq": (width, width),
        "attention.wk": (keys, width),
        "attention.wv": (keys, width),
        "attention.wo": (width, width),
        "ffn_norm": (width,),
        "feed_forward.w1": (inner, width),
        "feed_forward.w2": (width, inner),
        "feed_forward.w3": (inner, width),
        "norm": (width,),
        "rotary angles": (2, shape["max_seq_len"], head // 2),  # cosines and sines: not weights
        "output": (shape["vocab_size"], width),
    }


# Ids 0 to 2 of a SentencePiece vocabulary. llama2.c trains on documents that begin with `<s>`, and
# stops writing there, so that is what parts them.
SPECIALS = {"<unk>": 0, "<s>": 1, "</s>": 2}
SPACE = "▁"


def read_tokenizer_bin(path: Path) -> Tokenizer:
    """llama2.c's `tokenizer.bin`: the pieces of a SentencePiece BPE with their scores.

    Raises:
        TokenizerError: no such file, or not one of these.
    """
    pieces = _pieces(path)
    vocab = {piece: number for number, (piece, _) in enumerate(pieces)} | SPECIALS
    definition = define(vocab, merges=_merges(pieces), specials=SPECIALS, decoder=_decoder())
    definition["model"] |= {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    space = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    definition["normalizer"] = {
        "type": "Sequence",
        "normalizers": [{"type": "Prepend", "prepend": SPACE}, space],
    }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<s>"}
    return Tokenizer(definition, "folder", config)


def _pieces(path: Path) -> list[tuple[str, float]]:
    """Each id's piece, with spaces as SentencePiece writes them, and its score."""
    try:
        content = path.read_bytes()
        found, at = [], 4  # behind the length of the longest piece
        while at < len(content):
            score, length = struct.unpack_from("<fI", content, at)
            at += 8 + length
            piece = content[at - length : at].decode("utf-8").replace(" ", SPACE)
            found.append((piece, score))
    except (OSError, struct.error, UnicodeDecodeError) as fault:
        raise TokenizerError(f"cannot be read: {fault}", where=str(path)) from fault
    if at != len(content) or [piece.strip() for piece, _ in found[:3]] != list(SPECIALS):
        raise TokenizerError("is no tokenizer.bin of llama2.c", where=str(path))
    return [(name, 0.0) for name in SPECIALS] + found[3:]


def _merges(pieces: list[tuple[str, float]]) -> list[Merge]:
    """Pairs in the order in which they merge: the highest score of their union first."""
    known = {piece for piece, _ in pieces[len(SPECIALS) :] if not piece.startswith("<0x")}
    ordered = sorted((entry for entry in pieces if entry[0] in known), key=lambda entry: -entry[1])
    return [
        (piece[:cut], piece[cut:])
        for piece, _ in ordered
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]


def _decoder() -> dict[str, object]:
    space = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return {
        "type": "Sequence",
        "decoders": [space, {"type": "ByteFallback"}, {"type": "Fuse"}, strip],
    }
