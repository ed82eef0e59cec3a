"""A vocabulary as a value: the content of a `tokenizer.json`, and what follows from it.

Every kind of tokenizer is one such value, so that Hugging Face's libraries read all of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparrowlm.errors import TokenizerError

Definition = dict[str, Any]
Merge = tuple[str, str]

END_OF_TEXT = "<|endoftext|>"
SPECIALS: tuple[str, ...] = (
    END_OF_TEXT,
    "<|im_start|>",
    "<|im_end|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    *(f"<|spare_{number}|>" for number in range(7)),
)

# How text is cut before merging. The first is Qwen2's (llama.cpp: "qwen2"), the second is what
# `tokenizers` calls ByteLevel's own (GPT-2's encoder.py).
PATTERNS: dict[str, str] = {
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2's
    `bytes_to_unicode`): printable Latin-1 as itself, the others from U+0100 on."""
    kept = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in kept else next(others)) for byte in range(256)]


BYTE_TO_CHARACTER: tuple[str, ...] = tuple(_byte_characters())
CHARACTER_TO_BYTE: Mapping[str, int] = {char: byte for byte, char in enumerate(BYTE_TO_CHARACTER)}


# The same as a table for `str.translate`; what stands for no byte must not pass for one.
_TO_LATIN = {
    **dict.fromkeys(range(256), 0xFFFF),
    **{ord(c): b for c, b in CHARACTER_TO_BYTE.items()},
}


def split_by(name: str) -> Definition:
    """The `pre_tokenizer` entry that cuts by the pattern of a name and then spells bytes."""
    if name == "gpt2":  # ByteLevel's own: the form in which others recognize it
        return _byte_level(use_regex=True)
    split = {"type": "Split", "pattern": {"Regex": PATTERNS[name]}, "behavior": "Isolated"}
    return {
        "type": "Sequence",
        "pretokenizers": [split | {"invert": False}, _byte_level(use_regex=False)],
    }


def define(
    vocab: Mapping[str, int],
    *,
    merges: Sequence[Merge] = (),
    specials: Mapping[str, int] | None = None,
    pre_tokenizer: Definition | None = None,
    decoder: Definition | None = None,
) -> Definition:
    """A `tokenizer.json` around a BPE model. `vocab` includes the specials."""
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": dict(sorted(vocab.items(), key=lambda item: item[1])),
        "merges": [list(merge) for merge in merges],
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(text, number) for text, number in (specials or {}).items()],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder or _byte_level(use_regex=True),
        "model": model,
    }


def define_characters(characters: Sequence[str]) -> Definition:
    """One id for each character, in the order given (nanoGPT's `stoi`)."""
    vocab = {character: number for number, character in enumerate(characters)}
    return define(vocab, decoder={"type": "Fuse"})


def define_bytes() -> Definition:
    """Ids 0 to 255 are the bytes, 256 ends a document."""
    vocab = {character: byte for byte, character in enumerate(BYTE_TO_CHARACTER)}
    whole = _byte_level(use_regex=False)
    return define(vocab | {END_OF_TEXT: 256}, specials={END_OF_TEXT: 256}, pre_tokenizer=whole)


def define_gpt2(vocab: Mapping[str, int], merges: Sequence[Merge]) -> Definition:
    """GPT-2's vocabulary and merges as they were published."""
    specials = {END_OF_TEXT: vocab[END_OF_TEXT]} if END_OF_TEXT in vocab else {}
    return define(vocab, merges=merges, specials=specials, pre_tokenizer=split_by("gpt2"))


def is_byte_level(definition: Definition) -> bool:
    """Whether pieces are spelled in `BYTE_TO_CHARACTER`."""
    return any(e.get("type") == "ByteLevel" for e in _entries(definition.get("decoder")))


def special_ids(definition: Definition) -> dict[str, int]:
    """Every added token, by id. All of them count as special here: text becomes none of them."""
    added = {str(token["content"]): int(token["id"]) for token in definition["added_tokens"]}
    return dict(sorted(added.items(), key=lambda item: item[1]))


def merges_of(definition: Definition) -> list[Merge]:
    """The merge list; older files write a pair as one string."""
    pairs = (
        merge.split(" ", 1) if isinstance(merge, str) else merge
        for merge in definition["model"].get("merges", [])
    )
    return [(left, right) for left, right in pairs]


def vocab_of(definition: Definition) -> dict[str, int]:
    """Piece to id, without added tokens that the model itself does not list."""
    vocab = definition["model"]["vocab"]
    if isinstance(vocab, dict):
        return vocab
    return {piece: number for number, (piece, _) in enumerate(vocab)}


def pieces_of(definition: Definition) -> list[bytes]:
    """The bytes of each id; empty for specials and for ids that stand for nothing.

    Raises:
        TokenizerError: the vocabulary cannot be read back as bytes.
    """
    specials = special_ids(definition)
    vocab = vocab_of(definition)
    size = 1 + max([*vocab.values(), *specials.values()], default=-1)
    pieces = [b""] * size
    spell = _spelling(definition)
    hidden = set(specials.values())
    for piece, number in vocab.items():
        if number not in hidden:
            pieces[number] = spell(piece)
    return pieces


def fingerprint(definition: Definition) -> str:
    """SHA-256 of whatever decides ids, in hexadecimal, whatever else the file says."""
    model = {
        key: value
        for key, value in definition["model"].items()
        if key not in ("vocab", "merges") and value not in (None, False)
    }
    deciding = {
        "model": model,
        "vocab": sorted(vocab_of(definition).items(), key=lambda item: (item[1], item[0])),
        "merges": merges_of(definition),
        "specials": special_ids(definition),
        "normalizer": definition.get("normalizer"),
        "pre_tokenizer": definition.get("pre_tokenizer"),
    }
    content = json.dumps(deciding, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def split_pattern(definition: Definition) -> str | None:
    """The pattern of a plain byte-level BPE that nothing else precedes, or None."""
    entry = definition.get("pre_tokenizer") or {}
    if definition.get("normalizer") or not is_byte_level(definition):
        return None
    if entry.get("type") == "ByteLevel":
        plain = not entry.get("add_prefix_space") and entry.get("use_regex", True)
        return PATTERNS["gpt2"] if plain else None
    match entry.get("pretokenizers"):
        case [
            {"type": "Split", "pattern": {"Regex": pattern}} as split,
            {"type": "ByteLevel"} as rest,
        ]:
            isolated = split.get("behavior") == "Isolated" and not split.get("invert")
            spells = not rest.get("add_prefix_space") and rest.get("use_regex") is False
            return pattern if isolated and spells else None
    return None


def adds_space(definition: Definition) -> bool:
    """Whether encoding puts a space before the text that decoding takes away again, as
    SentencePiece does."""
    if is_byte_level(definition):
        return False
    return any(
        (entry.get("type") == "Strip" and entry.get("start"))
        or (entry.get("type") == "Metaspace" and entry.get("prepend_scheme") != "never")
        for entry in _entries(definition.get("decoder"))
    )


def _spelling(definition: Definition) -> Any:
    """How a piece turns into bytes."""
    if is_byte_level(definition):
        return _from_byte_level
    if definition.get("pre_tokenizer") is None and definition.get("decoder") == {"type": "Fuse"}:
        return _from_characters
    kind = definition["model"].get("type")
    if kind in ("BPE", "Unigram") and "▁" in json.dumps(definition["decoder"], ensure_ascii=False):
        return _from_metaspace
    raise TokenizerError(
        f"a {kind} vocabulary of this form cannot be turned back into the exact text",
        why="byte-level BPE, and SentencePiece forms that mark spaces with ▁, are read",
        fix="choose another tokenizer",
    )


def _from_characters(piece: str) -> bytes:
    return piece.encode("utf-8")


def _from_byte_level(piece: str) -> bytes:
    try:
        return piece.translate(_TO_LATIN).encode("latin-1")
    except UnicodeEncodeError:  # an entry that no text can reach, such as an unlisted special
        return piece.encode("utf-8")


def _from_metaspace(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("▁", " ").encode("utf-8")


def _added(text: str, number: int) -> Definition:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": text, **flags, "special": True}


def _byte_level(*, use_regex: bool) -> Definition:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _entries(entry: Any) -> Iterator[Definition]:
    """A (possibly nested) entry and those within it."""
    if isinstance(entry, dict):
        yield entry
        for part in entry.values():
            yield from _entries(part)
    elif isinstance(entry, list):
        for part in entry:
            yield from _entries(part)
