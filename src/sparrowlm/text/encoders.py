"""The engines that turn text into ids. All of one vocabulary give the same ids.

`tokenizers` is the reference. tiktoken on the same merges is several times as fast, `gigatoken`
(optional) far more. A fast engine is used only where it agrees with the reference: see
`choose_encoder`.
"""

from __future__ import annotations

import importlib.util
import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from sparrowlm.errors import TokenizerError
from sparrowlm.text.definition import (
    Definition,
    special_ids,
    split_pattern,
    vocab_of,
)
from sparrowlm.text.fast import Ids, TiktokenEncoder, ranks_of

SAMPLE_CHARACTERS = 50_000
# Two languages, and the places where engines differ: runs, contractions, marks, joined emoji.
SAMPLE = (
    "The quick brown fox's 3 pups didn't; they'LL jump 12345 times.\r\n\r\n\tif x_1 >= 0:\n"
    "        return  self.value   \n\n\n    # done ...!!!\u00a0\u3000end  \n"
    "麻雀虽小，五脏俱全。床前明月光，疑是地上霜！「你好」？１２３ café naïve Ωμέγα Привет"
    " e\u0301 नमस्ते שלום مرحبا \U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e8\U0001f1f3"
    " \u200b\ufeff\u2028x\u0085y\u001c <|endoftext|><think>\x00\x7f\n"
    + "a" * 300
    + " " * 300
    + "=" * 120
    + "\n" * 40
    + "ſ'S 'Re\t \t x"
)


class Encoder(Protocol):
    """Text to ids, specials excepted."""

    name: str

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[Ids]:
        """One array of ids for each text."""
        ...


class CharacterEncoder:
    """One id a character."""

    name = "characters"

    def __init__(self, definition: Definition) -> None:
        self._ids = vocab_of(definition)

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[Ids]:
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> Ids:
        ids = self._ids
        try:
            return np.fromiter((ids[character] for character in text), np.uint32, len(text))
        except KeyError:
            unknown = sorted(set(text) - ids.keys())
        shown = ", ".join(f"{character!r}" for character in unknown[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise TokenizerError(
            f"the vocabulary has no {shown}{more}",
            why=f"it knows the {len(ids)} characters of the text it was made from",
            fix="make the vocabulary from all the text, or use one of bytes",
        )


class ByteEncoder:
    """One id a byte."""

    name = "bytes"

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[Ids]:
        return [np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.uint32) for text in texts]


class ReferenceEncoder:
    """Hugging Face's `tokenizers`, with no added tokens, so that text never becomes one."""

    name = "tokenizers"

    def __init__(self, definition: Definition) -> None:
        self.raw = reference(definition)

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[Ids]:
        encodings = self.raw.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]


class GigatokenEncoder:
    """The optional `gigatoken` package, above 100 MB/s."""

    name = "gigatoken"

    def __init__(self, definition: Definition) -> None:
        import gigatoken  # pyright: ignore[reportMissingImports]

        self._raw = gigatoken.Tokenizer.from_json(json.dumps(without_specials(definition)))

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[Ids]:
        if not texts:
            return []
        layout: Any = self._raw.encode_batch(list(texts), parallel=threads > 1).layout
        ids, borders = np.asarray(layout.content.data), np.asarray(layout.offsets.data)
        return [ids[start:end] for start, end in pairwise(borders.tolist())]


def choose_encoder(definition: Definition, kind: str, texts: Sequence[str]) -> tuple[Encoder, str]:
    """The fastest engine that gives the reference's ids.

    Args:
        definition: the vocabulary.
        kind: chars and bytes need no engine.
        texts: what is to be encoded first; its head is part of the sample.

    Returns:
        The engine, and a sentence for the person where a faster one was turned down, else "".
    """
    if kind == "chars":
        return CharacterEncoder(definition), ""
    if kind == "bytes":
        return ByteEncoder(), ""
    known = ReferenceEncoder(definition)
    sample = [SAMPLE, *_heads(texts)]
    expected = known.encode_batch(sample, 1)
    refusals: list[str] = []
    for name, build in FAST.items():
        if importlib.util.find_spec(name) is None:
            continue
        try:
            encoder = build(definition, known)
            if encoder is None:
                continue
            if _equal(encoder.encode_batch(sample, 1), expected):
                return encoder, _refused(refusals, encoder)
            refusals.append(f"{name} gives other ids than tokenizers on a sample")
        except (ImportError, ValueError, TypeError, RuntimeError, OSError) as fault:
            refusals.append(f"{name} cannot use this vocabulary ({fault})")
    return known, _refused(refusals, known)


def _gigatoken(definition: Definition, known: ReferenceEncoder) -> Encoder | None:
    return GigatokenEncoder(definition) if split_pattern(definition) else None


def _tiktoken(definition: Definition, known: ReferenceEncoder) -> Encoder | None:
    pattern = split_pattern(definition)
    table = ranks_of(definition, known.raw) if pattern else None
    return TiktokenEncoder(pattern, *table) if pattern and table else None


# Fastest first.
FAST: dict[str, Callable[[Definition, ReferenceEncoder], Encoder | None]] = {
    "gigatoken": _gigatoken,
    "tiktoken": _tiktoken,
}


def _refused(refusals: list[str], used: Encoder) -> str:
    return f"{'; '.join(refusals)}; {used.name} is used" if refusals else ""


def _equal(one: Sequence[Ids], other: Sequence[Ids]) -> bool:
    return all(np.array_equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


def reference(definition: Definition) -> Any:
    """A `tokenizers.Tokenizer` that knows no added token.

    Raises:
        TokenizerError: `tokenizers` refuses the definition.
    """
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(json.dumps(without_specials(definition)))
    except Exception as fault:  # `tokenizers` raises a bare Exception
        raise TokenizerError(f"tokenizers cannot read it: {fault}") from fault


def without_specials(definition: Definition) -> Definition:
    """The same vocabulary with no way from text to a special id."""
    model = dict(definition["model"])
    specials = set(special_ids(definition)) - {model.get("unk_token")}
    if isinstance(model["vocab"], dict):
        kept = {piece: id for piece, id in model["vocab"].items() if piece not in specials}
        model["vocab"] = kept
    else:
        # A Unigram model numbers its entries by position, so theirs get a name nobody can type.
        unknown, secret = model.get("unk_id"), secrets.token_hex(16)
        model["vocab"] = [
            [f"\0{secret}{id}", score] if piece in specials and id != unknown else [piece, score]
            for id, (piece, score) in enumerate(model["vocab"])
        ]
    plain = {**definition, "added_tokens": [], "post_processor": None, "model": model}
    return plain | {"truncation": None, "padding": None}


def _heads(texts: Sequence[str]) -> Iterator[str]:
    """The first characters of a batch, about `SAMPLE_CHARACTERS` in all."""
    left = SAMPLE_CHARACTERS
    for text in texts:
        if left <= 0:
            return
        yield text[:left]
        left -= len(text)
