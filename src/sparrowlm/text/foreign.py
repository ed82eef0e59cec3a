"""Vocabularies that others wrote, read from a local folder; nothing is fetched."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparrowlm.errors import TokenizerError
from sparrowlm.text.definition import Definition, Merge, define_gpt2

# tiktoken's cache names a file by the SHA-1 of its address.
_ADDRESS = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
GPT2_FILES: tuple[tuple[str, str], ...] = (
    ("encoder.json", "vocab.bpe"),
    ("vocab.json", "merges.txt"),
    (
        hashlib.sha1(f"{_ADDRESS}encoder.json".encode()).hexdigest(),
        hashlib.sha1(f"{_ADDRESS}vocab.bpe".encode()).hexdigest(),
    ),
)


def read_definition(path: Path) -> Definition:
    """A `tokenizer.json`.

    Raises:
        TokenizerError: not one.
    """
    value = _read_json(path)
    model = value.get("model") if isinstance(value, dict) else None
    if not isinstance(model, dict) or "vocab" not in model:
        raise TokenizerError(
            "holds no vocabulary", where=str(path), why='there is no "model.vocab"'
        )
    value.setdefault("added_tokens", [])
    value.setdefault("decoder", None)
    if "type" not in model:  # files of old releases leave it to be guessed
        model["type"] = "BPE" if "merges" in model else "WordPiece"
    return value


def read_config(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json`, with the template of a `chat_template.jinja` beside it; {} where
    there is none. Of several templates the one called default is the `chat_template`.

    Raises:
        TokenizerError: the file is not a JSON object, or none of its templates is the default.
    """
    path, template = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    config = _read_json(path) if path.is_file() else {}
    if not isinstance(config, dict):
        raise TokenizerError("is not a JSON object", where=str(path))
    if template.is_file():
        config["chat_template"] = template.read_text(encoding="utf-8")
    elif not isinstance(config.get("chat_template"), str | None):
        config["chat_template"] = _default_template(config["chat_template"], path)
    return config


def _default_template(value: object, path: Path) -> str:
    """The template for chats where a file holds several, each `{"name", "template"}`: beside it
    stand such as those for tools and for retrieval."""
    entries = value if isinstance(value, list) else []
    named = {one.get("name"): one.get("template") for one in entries if isinstance(one, dict)}
    found = named.get("default")
    if isinstance(found, str):
        return found
    names = ", ".join(str(name) for name in named) or "none that can be read"
    raise TokenizerError(
        f"chat_template is a list without a template called default; it has: {names}",
        where=str(path),
        why="which of them a conversation is written by cannot be told",
        fix="put the text of one of them in its place, as a string",
    )


def read_gpt2(folder: Path, tokenizer_class: str = "") -> Definition:
    """GPT-2's vocabulary under any of its file names.

    Raises:
        TokenizerError: the files are not there, or belong to another family, whose pattern they
            do not tell.
    """
    for vocab_name, merges_name in GPT2_FILES:
        if (folder / vocab_name).is_file() and (folder / merges_name).is_file():
            break
    else:
        raise TokenizerError(
            "holds no tokenizer",
            where=str(folder),
            why="there is no tokenizer.json, encoder.json with vocab.bpe, vocab.json with"
            " merges.txt, or tiktoken cache of GPT-2",
            fix="name the folder that holds one of them",
        )
    if tokenizer_class not in ("", "GPT2Tokenizer", "GPT2TokenizerFast"):
        raise TokenizerError(
            f"has the files of a {tokenizer_class} but no tokenizer.json",
            where=str(folder),
            why="vocab.json and merges.txt do not say how text is cut",
            fix="save it once with transformers' save_pretrained, as a fast tokenizer",
        )
    vocab = _read_json(folder / vocab_name)
    merges = list(_read_merges(folder / merges_name))
    if not isinstance(vocab, dict) or any(left + right not in vocab for left, right in merges):
        raise TokenizerError("vocabulary and merges do not belong together", where=str(folder))
    return define_gpt2(vocab, merges)


def _read_merges(path: Path) -> Iterator[Merge]:
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, space, right = line.removesuffix("\r").partition(" ")
        if not (left and space and right):
            raise TokenizerError("is not a pair", where=f"{path}:{number}")
        yield left, right


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise TokenizerError(f"cannot be read as JSON: {fault}", where=str(path)) from fault
