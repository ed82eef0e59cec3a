"""What a policy is asked: prompts with what a reward needs to know of them.

A row is `{"prompt", "gold", …}`, in any file that chats are read from. A prompt is a string or a
list of messages; the row stays whole, for rewards to look at.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from sparrowlm.config import RolloutConfig
from sparrowlm.config.rollout import opens_thought
from sparrowlm.data.sources import Source
from sparrowlm.data.split import falls_out
from sparrowlm.errors import DataError, TokenizerError
from sparrowlm.text.chat import ChatFormat
from sparrowlm.text.conversations import read_values
from sparrowlm.text.rows import Rejected

if TYPE_CHECKING:
    from sparrowlm.text.tokenizer import Tokenizer

Encode = Callable[[Any], list[int]]


class Prompt(NamedTuple):
    """One thing to answer."""

    ids: list[int]
    """Up to where an answer begins."""
    row: dict[str, Any]
    """As it was read, `gold` and all."""
    number: int
    """From 1, over all files."""
    place: str
    """`prompts.jsonl:12`."""


@dataclass(frozen=True)
class PromptDataset:
    """Prompts to learn from, prompts held out, and what they mean."""

    train: list[Prompt]
    val: list[Prompt]
    tokenizer: Tokenizer
    vocab_size: int
    eot_id: int | None
    fingerprint: str
    description: dict[str, Any]


def open_prompts(
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    settings: RolloutConfig,
    *,
    val_fraction: float,
    longest: int = 0,
    tools: Sequence[dict[str, Any]] = (),
    skip_bad: bool = False,
) -> PromptDataset:
    """Read prompts and split them by a hash of each.

    Args:
        sources: files of rows.
        tokenizer: of the policy.
        settings: whether prompts are turns of a chat, and behind which system turn.
        val_fraction: share held out.
        longest: ids that a prompt may have; a longer one is passed over and counted. 0: any.
        tools: what a policy is told that it may call.
        skip_bad: pass over rows that are no prompt, and count them.

    Raises:
        DataError: no file, a row that is no prompt, or nothing left to learn from.
    """
    encode = encoder(tokenizer, settings, tools)
    prompts: list[Prompt] = []
    digest, long, bad = hashlib.sha256(tokenizer.fingerprint.encode()), 0, 0
    told = [settings.chat, settings.system, list(tools), val_fraction]
    digest.update(json.dumps(told, sort_keys=True).encode())
    for number, (place, row, reason) in enumerate(_rows(sources), 1):
        ids, reason = ([], reason) if reason else _encoded(encode, row)
        if reason and not skip_bad:
            raise DataError(
                reason, where=place, fix='write {"prompt": …, "gold": …}, or set data.skip_bad'
            )
        digest.update(json.dumps(row, sort_keys=True).encode())
        too_long = bool(longest) and len(ids) > longest
        bad, long = bad + bool(reason), long + too_long
        if not reason and not too_long:
            prompts.append(Prompt(ids, row, number, place))
    held = [falls_out(_text(one).encode("utf-8", "replace"), val_fraction) for one in prompts]
    train = [one for one, out in zip(prompts, held, strict=True) if not out]
    paths = [str(source.path) for source in sources]
    if not train:
        why = f"{long} are longer than {longest} tokens, {bad} are no prompts" if long + bad else ""
        raise DataError("holds no prompt to learn from", where=", ".join(paths), why=why)
    val = [one for one, out in zip(prompts, held, strict=True) if out]
    facts = {"path": paths, "prompts": len(train), "held_out": len(val)}
    return PromptDataset(
        train=train,
        val=val,
        tokenizer=tokenizer,
        vocab_size=tokenizer.vocab_size,
        eot_id=tokenizer.eot_id,
        fingerprint=digest.hexdigest(),
        description={**facts, "too_long": long, "rejected": bad},
    )


def encoder(
    tokenizer: Tokenizer, settings: RolloutConfig, tools: Sequence[dict[str, Any]] = ()
) -> Encode:
    """How a prompt, a string or messages, becomes ids.

    Reasoning is opened where `format` is among the rewards: it asks for a thought.
    """
    if not settings.chat:
        return lambda prompt: _plain(tokenizer, prompt)
    chat = ChatFormat(tokenizer)
    thinking = opens_thought(settings)
    system = [{"role": "system", "content": settings.system}] if settings.system else []

    def turns(prompt: Any) -> list[int]:
        asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return chat.prompt_ids([*system, *asked], list(tools), thinking)

    return turns


def _plain(tokenizer: Tokenizer, prompt: Any) -> list[int]:
    if not isinstance(prompt, str):
        raise DataError("'prompt' holds messages, and rollout.chat is false")
    ids = tokenizer.encode(prompt)
    # As in pretraining, where an end of text stands before every document.
    return ids if tokenizer.eot_id is None else [tokenizer.eot_id, *ids]


def _encoded(encode: Encode, row: dict[str, Any]) -> tuple[list[int], str]:
    """The ids of a row's prompt, or why there are none."""
    prompt = row.get("prompt")
    if not isinstance(prompt, str | list) or not prompt:
        present = ", ".join(map(repr, list(row)[:5])) or "nothing"
        return [], f"has no 'prompt', a string or messages; it has {present}"
    try:
        return encode(prompt), ""
    except (DataError, TokenizerError) as fault:
        return [], fault.what


def _rows(sources: Sequence[Source]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(place, row, why it is none) of every row."""
    for source in sources:
        for row in read_values(source.path, lambda row: row):
            place = f"{row.source}:{row.line}"
            yield (place, {}, row.reason) if isinstance(row, Rejected) else (place, row.value, "")


def _text(prompt: Prompt) -> str:
    """What decides on which side of the split a prompt is."""
    asked = prompt.row["prompt"]
    return asked if isinstance(asked, str) else json.dumps(asked, sort_keys=True)
