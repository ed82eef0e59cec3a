"""Making a vocabulary from text, deterministically and in bounded memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator

from sparrowlm.config import TokenizerConfig
from sparrowlm.errors import TokenizerError
from sparrowlm.text.definition import BYTE_TO_CHARACTER, SPECIALS, Definition, split_by
from sparrowlm.text.fast import SAFE_CUT

Progress = Callable[[int], None]
BLOCK_CHARACTERS = 1 << 14  # what is kept or dropped as one
SMALLEST = len(BYTE_TO_CHARACTER) + len(SPECIALS)


def train_bpe(
    texts: Iterable[str], config: TokenizerConfig, progress: Progress | None = None
) -> tuple[Definition, str]:
    """Byte-level BPE. Ids are the specials, the 256 bytes, then the merges in order.

    Returns:
        The definition, and a sentence where the text gave fewer entries than asked for.

    Raises:
        TokenizerError: no text, or `vocab_size` below bytes and specials.
    """
    from tokenizers import Tokenizer, decoders, models, trainers

    if config.vocab_size < SMALLEST:
        raise TokenizerError(
            f"{config.vocab_size} entries are too few",
            where="tokenizer.vocab_size",
            why=f"256 bytes and {len(SPECIALS)} special tokens take {SMALLEST}",
            fix=f"choose {SMALLEST} or more",
        )
    raw = Tokenizer(models.BPE())
    raw.decoder = decoders.ByteLevel()
    shell = json.loads(raw.to_str()) | {"pre_tokenizer": split_by(config.pattern)}
    raw = Tokenizer.from_str(json.dumps(shell))
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=list(BYTE_TO_CHARACTER),
        show_progress=False,
    )
    raw.train_from_iterator(thin(texts, config.character_budget, progress), trainer)
    definition: Definition = json.loads(raw.to_str())
    size = len(definition["model"]["vocab"])
    if size == SMALLEST:
        raise TokenizerError("the text holds no pair of bytes to merge", fix="give more text")
    note = f"the text gives {size} of {config.vocab_size} entries; give more text to fill them"
    return definition, note if size < config.vocab_size else ""


def characters_of(texts: Iterable[str], progress: Progress | None = None) -> list[str]:
    """Every character of the texts, sorted. All of the text is read: none may be unknown later.

    Raises:
        TokenizerError: no text.
    """
    found: set[str] = set()
    seen = 0
    for text in texts:
        found.update(text)
        seen += len(text)
        if progress:
            progress(seen)
    if not found:
        raise TokenizerError("there is no text to make a vocabulary from")
    return sorted(found)


def thin(texts: Iterable[str], budget: int, progress: Progress | None = None) -> Iterator[str]:
    """At most `budget` characters, evenly over the input, whose length nobody knows beforehand.

    Text is taken in blocks of about 16 Ki characters. All are kept until the budget is full; then
    every other one is dropped and from there on only every second is taken, and so on. What
    remains is every 2^k-th block of the whole input, between half of the budget and all of it,
    and depends on nothing but the text.
    """
    kept: list[tuple[int, list[str], int]] = []  # number, pieces, characters
    stride, held, seen = 1, 0, 0
    for number, block in enumerate(_blocks(texts)):
        size = sum(map(len, block))
        seen += size
        if progress:
            progress(seen)
        if number % stride:
            continue
        kept.append((number, block, size))
        held += size
        while held > budget and len(kept) > 1:
            stride *= 2
            kept = [entry for entry in kept if entry[0] % stride == 0]
            held = sum(size for _, _, size in kept)
    for _, block, _ in kept:
        yield from block


def _blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Lists of texts of about `BLOCK_CHARACTERS` together; a longer text is cut at line ends."""
    block: list[str] = []
    size = 0
    for text in texts:
        start = 0
        while start < len(text):
            end = start + BLOCK_CHARACTERS - size
            if end < len(text):
                # Only where both patterns cut: the vocabulary would learn the halves of words.
                cut = SAFE_CUT.search(text, end)
                end = cut.start() + 2 if cut else len(text)
            block.append(text[start:end])
            size += len(block[-1])
            start = end
            if size >= BLOCK_CHARACTERS:
                yield block
                block, size = [], 0
    if block:
        yield block
