"""Text to ids and back: one class for every kind of vocabulary.

A kind is `bpe`, `chars`, `bytes`, `gpt2` or `folder` (someone else's). All are saved as the
files that Hugging Face's libraries read, and read back from there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sparrowlm.config import TokenizerConfig
from sparrowlm.errors import TokenizerError
from sparrowlm.files import write_text
from sparrowlm.text import foreign, training
from sparrowlm.text.chat import CHAT_TEMPLATE
from sparrowlm.text.definition import (
    END_OF_TEXT,
    PATTERNS,
    Definition,
    adds_space,
    define_bytes,
    define_characters,
    fingerprint,
    merges_of,
    pieces_of,
    special_ids,
    split_pattern,
    vocab_of,
)
from sparrowlm.text.encoders import Encoder, choose_encoder

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
KIND_KEY = "sparrow_kind"  # in tokenizer_config.json; Hugging Face's libraries pass over it


class Tokenizer:
    """A vocabulary with its engine.

    Text never becomes a special id, whatever it contains: specials are added by id alone.

    >>> tokenizer = byte_tokenizer()
    >>> tokenizer.encode("hi"), tokenizer.decode([104, 105, 256])
    ([104, 105], 'hi')
    """

    def __init__(
        self, definition: Definition, kind: str, config: dict[str, Any] | None = None
    ) -> None:
        """
        Args:
            definition: the content of a `tokenizer.json`.
            kind: bpe, chars, bytes, gpt2 or folder.
            config: the content of a `tokenizer_config.json`.

        Raises:
            TokenizerError: the vocabulary cannot be turned back into text.
        """
        self.kind = kind
        self.special_ids: dict[str, int] = special_ids(definition)
        # What ends a document; other families have a name of their own for it.
        end = END_OF_TEXT if END_OF_TEXT in self.special_ids else _name(config or {}, "eos_token")
        self.eot_id: int | None = self.special_ids.get(end)
        # What a person should know about how this one works; the command line prints it.
        self.notes: list[str] = []
        self._definition = definition
        self._config = config or {}
        self._pieces = pieces_of(definition)
        self._adds_space = adds_space(definition)
        self._encoder: Encoder | None = None
        if definition.get("normalizer"):
            self.notes.append(
                "its normalizer may rewrite text: decoding need not give the input back"
            )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of whatever decides ids."""
        return fingerprint(self._definition)

    @property
    def vocab_size(self) -> int:
        """Ids are 0 to vocab_size - 1."""
        return len(self._pieces)

    @property
    def definition(self) -> Definition:
        """The content of `tokenizer.json`; to be read, not changed."""
        return self._definition

    @property
    def chat_template(self) -> str | None:
        """The Jinja template of `tokenizer_config.json`."""
        template = self._config.get("chat_template")
        return template if isinstance(template, str) else None

    @property
    def special_names(self) -> dict[str, str]:
        """What `tokenizer_config.json` calls bos_token, eos_token and the like; a template may ask
        for them."""
        keys = ("bos_token", "eos_token", "pad_token", "unk_token")
        return {key: _name(self._config, key) for key in keys}

    @property
    def cuts_at_lines(self) -> bool:
        """Whether a text cut behind a line end that stands between two characters which are no
        space has the same ids as the whole text; true of all we make."""
        pattern = split_pattern(self._definition)
        return self.kind in ("chars", "bytes") or pattern in PATTERNS.values()

    @property
    def engine(self) -> str:
        """The encoder in use (gigatoken, tiktoken, tokenizers, characters or bytes); chosen and
        checked against the reference by the first text that is encoded."""
        return self._engine([]).name

    def encode(self, text: str) -> list[int]:
        """The ids of a text, never a special one.

        Raises:
            TokenizerError: a character that the vocabulary lacks (kind chars), or half of a
                surrogate pair.
        """
        return self.encode_batch([text], threads=1)[0].tolist()

    def encode_batch(self, texts: Sequence[str], *, threads: int = 0) -> list[np.ndarray]:
        """The ids of many texts, (n,) uint32 each, in order.

        Args:
            texts: any number, of any length.
            threads: 0 takes one for each core; a worker process takes 1.

        Raises:
            TokenizerError: as `encode`.
        """
        texts = list(texts)
        for text in texts:
            _check_text(text)
        return self._engine(texts).encode_batch(texts, threads or os.cpu_count() or 1)

    def decode(self, ids: Iterable[int], *, specials: bool = False) -> str:
        """Text of ids; bytes that are no UTF-8 become U+FFFD.

        Args:
            ids: any integers below `vocab_size`.
            specials: write special tokens out instead of leaving them out.
        """
        if not specials:
            return self.decode_bytes(ids).decode("utf-8", errors="replace")
        names = {number: text.encode("utf-8") for text, number in self.special_ids.items()}
        pieces = (names.get(int(number)) or self.token_bytes(int(number)) for number in ids)
        return b"".join(pieces).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of ids; specials have none.

        Raises:
            TokenizerError: an id outside the vocabulary.
        """
        numbers = [int(number) for number in ids]
        if numbers and not 0 <= min(numbers) <= max(numbers) < len(self._pieces):
            raise self._outside(next(id for id in numbers if not 0 <= id < len(self._pieces)))
        content = b"".join(map(self._pieces.__getitem__, numbers))
        return content.removeprefix(b" ") if self._adds_space else content

    def token_bytes(self, id: int) -> bytes:
        """The bytes of one id, `b""` for a special.

        Raises:
            TokenizerError: an id outside the vocabulary.
        """
        if not 0 <= id < len(self._pieces):
            raise self._outside(id)
        return self._pieces[id]

    def byte_lengths(self) -> np.ndarray:
        """(vocab_size,) int32: bytes of each id, 0 for specials."""
        return np.array([len(piece) for piece in self._pieces], np.int32)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json` and, of a BPE model, `vocab.json` and
        `merges.txt` into an existing folder. `load_tokenizer` reads them, and
        `transformers.AutoTokenizer` does so offline."""
        config = {**self._config, KIND_KEY: self.kind}
        write_text(folder / TOKENIZER_JSON, _json(self._definition))
        write_text(folder / TOKENIZER_CONFIG, _json(config))
        if self._definition["model"].get("type") == "BPE":
            vocab = vocab_of(self._definition) | self.special_ids
            write_text(folder / "vocab.json", _json(vocab))
            lines = [f"{left} {right}\n" for left, right in merges_of(self._definition)]
            write_text(folder / "merges.txt", "#version: 0.2\n" + "".join(lines))

    def _outside(self, id: int) -> TokenizerError:
        return TokenizerError(
            f"id {id} is outside the vocabulary of {len(self._pieces)}",
            why="the ids come from another vocabulary",
        )

    def __getstate__(self) -> dict[str, Any]:
        """A worker process gets the vocabulary and chooses its own engine."""
        return {**self.__dict__, "_encoder": None}

    def _engine(self, texts: Sequence[str]) -> Encoder:
        if self._encoder is None:
            self._encoder, note = choose_encoder(self._definition, self.kind, texts)
            if note:
                self.notes.append(note)
        return self._encoder


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """What `save` wrote, any Hugging Face folder with a `tokenizer.json`, or GPT-2's files
    (`encoder.json` and `vocab.bpe`, `vocab.json` and `merges.txt`, a tiktoken cache).

    Raises:
        TokenizerError: nothing there that can be read.
    """
    folder = Path(folder).expanduser()
    if folder.name == TOKENIZER_JSON and folder.is_file():
        folder = folder.parent
    if not folder.is_dir():
        raise TokenizerError(
            "no such folder",
            where=str(folder),
            fix="name a tokenizer's folder; nothing is fetched from the network",
        )
    if (folder / "tokenizer" / TOKENIZER_JSON).is_file():  # a run, or a prepared dataset
        folder = folder / "tokenizer"
    config = foreign.read_config(folder)
    if (folder / TOKENIZER_JSON).is_file():
        definition = foreign.read_definition(folder / TOKENIZER_JSON)
        kind = str(config.pop(KIND_KEY, "folder"))
        return Tokenizer(definition, kind, config)
    definition = foreign.read_gpt2(folder, str(config.get("tokenizer_class", "")))
    return Tokenizer(definition, "gpt2", config or _huggingface_config())


def open_tokenizer(name: str) -> Tokenizer:
    """What a person names in an option: the folder of one, or "bytes".

    Raises:
        TokenizerError: as `load_tokenizer`.
    """
    return byte_tokenizer() if name == "bytes" else load_tokenizer(name)


def train_tokenizer(
    texts: Iterable[str],
    config: TokenizerConfig,
    progress: Callable[[int], None] | None = None,
) -> Tokenizer:
    """Make a vocabulary from texts, read once.

    The same texts give the same vocabulary, whatever the number of threads.

    Args:
        texts: documents, in order.
        config: kind `bpe` or `chars`, size, pattern, character budget.
        progress: called with the number of characters read so far.

    Raises:
        TokenizerError: no text, or a size that leaves no room for bytes and specials.
    """
    match config.kind:
        case "bpe":
            definition, note = training.train_bpe(texts, config, progress)
            tokenizer = Tokenizer(definition, "bpe", _huggingface_config(CHAT_TEMPLATE))
            tokenizer.notes += [note] if note else []
            return tokenizer
        case "chars":
            return character_tokenizer(training.characters_of(texts, progress))
        case _:
            raise TokenizerError(
                f"a tokenizer of kind {config.kind} is not trained", where="tokenizer.kind"
            )


def make_tokenizer(config: TokenizerConfig, texts: Callable[[], Iterable[str]]) -> Tokenizer:
    """The tokenizer that a recipe asks for; `texts` is called where it has to be trained.

    Raises:
        TokenizerError: as `load_tokenizer` and `train_tokenizer`.
    """
    match config.kind:
        case "bpe" | "chars":
            return train_tokenizer(texts(), config)
        case "bytes":
            return byte_tokenizer()
        case "gpt2" | "folder":
            if not config.path:
                raise TokenizerError(
                    f"kind {config.kind} needs a folder",
                    where="tokenizer.path",
                    fix="name the folder; nothing is fetched from the network",
                )
            return load_tokenizer(config.path)


def character_tokenizer(characters: Sequence[str]) -> Tokenizer:
    """One id for each character, in the order given. There is no end-of-text id.

    >>> character_tokenizer("abc").encode("cab")
    [2, 0, 1]
    """
    return Tokenizer(define_characters(characters), "chars", _huggingface_config(end=None))


def byte_tokenizer() -> Tokenizer:
    """Ids 0 to 255 are the bytes, 256 is `<|endoftext|>`."""
    return Tokenizer(define_bytes(), "bytes", _huggingface_config())


def _huggingface_config(chat_template: str = "", end: str | None = END_OF_TEXT) -> dict[str, Any]:
    """What `transformers` needs to know besides `tokenizer.json`. The class is the generic one:
    a model's own (Qwen2's) adds a normalizer that changes text. A name that is not in the
    vocabulary would be added to it."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "bos_token": None,
        "eos_token": end,
        "pad_token": end,
        "unk_token": None,
    }
    return config | ({"chat_template": chat_template} if chat_template else {})


def _name(config: dict[str, Any], key: str) -> str:
    """A special token's name in a `tokenizer_config.json`, where it may be a whole entry."""
    value = config.get(key)
    return str(value.get("content", "")) if isinstance(value, dict) else str(value or "")


def _check_text(text: str) -> None:
    """Engines differ on what is no text, so none gets it."""
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as fault:
        raise TokenizerError(
            f"character {fault.start} of the text is half of a surrogate pair",
            why="it was decoded from bytes in another encoding",
            fix="read it in its own encoding",
        ) from fault


def _json(value: Any) -> str:
    """JSON with a line for each entry. (`indent` takes a second for 50,000 of them: it is not
    written in C.)"""
    return json.dumps(value, ensure_ascii=False, separators=(",\n", ": ")) + "\n"
