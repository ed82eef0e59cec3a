"""A model's answers within a conversation, or its pieces of a story."""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple

from sparrowlm.infer.completion import End, Request
from sparrowlm.infer.sampling import Sampling
from sparrowlm.infer.session import Session
from sparrowlm.text.dialogue import Partner
from sparrowlm.text.reply import Fragment


class Spoken(NamedTuple):
    """What one token adds to an answer, or that its prompt is still being read."""

    token: int | None
    parts: list[Fragment]
    end: End


def answer(
    session: Session, partner: Partner, sampling: Sampling, sample: int = 0
) -> Generator[Spoken]:
    """Answer what was said last; the partner hears it, as far as it came, when this ends or is
    closed. The keys and values of what the session has read before are used again.

    Args:
        session: of an engine whose context does not slide.
        partner: was told what to answer.
        sampling: the answer has room for `max_tokens`, or for half of the context.
        sample: of answers to the same words each has draws of its own.

    Raises:
        UserError: what was said fills the context alone.
    """
    room = min(sampling.max_tokens, partner.context // 2)
    prompt = partner.prompt(room)
    reader = partner.reader(prompt)
    row = session.submit(Request(prompt, sampling, sample, partner.ends))
    tokens: list[int] = []
    parts: list[Fragment] = []
    try:
        end: End = ""
        while not end:
            pieces = session.round()
            if not pieces:  # whoever listens may want to stop
                yield Spoken(None, [], "")
            for piece in pieces:
                tokens.append(piece.token)
                end = piece.end
                found = reader.push(piece.token, piece.text) + (reader.finish() if end else [])
                parts += found
                yield Spoken(piece.token, found, end)
    finally:
        session.cancel(row)
        partner.hear(tokens, parts + reader.finish())
