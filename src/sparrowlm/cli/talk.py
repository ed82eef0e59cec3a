"""Questions to a fine-tuned run, and its answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sparrowlm.errors import UserError

if TYPE_CHECKING:
    from sparrowlm.cli.generate import Page
    from sparrowlm.infer.engine import Engine
    from sparrowlm.infer.sampling import Sampling
    from sparrowlm.text.chat import ChatFormat

ASK = "\nyou: "


def answer(
    engine: Engine,
    chat: ChatFormat,
    messages: list[dict[str, Any]],
    sampling: Sampling,
    page: Page,
    sample: int = 0,
) -> str:
    """Write the answer to a conversation so far, as it comes.

    Raises:
        UserError: the last question alone is longer than the model's context.
    """
    from sparrowlm.infer.engine import Request

    ids = prompt_of(chat, messages, engine.context)
    said: list[str] = []
    for piece in engine.stream([Request(ids, sampling, sample)]):
        if piece.token in chat.end_ids:
            break
        said.append(piece.text)
        page.write(piece.text)
    page.end_line()
    return "".join(said)


def prompt_of(chat: ChatFormat, messages: list[dict[str, Any]], context: int) -> list[int]:
    """The ids that an answer is written behind. Where they fill more than half of the context, the
    oldest turns are forgotten, a system turn and the last question excepted.

    Raises:
        UserError: the last question alone is longer than the context.
    """
    head = messages[:1] if messages[0]["role"] == "system" else []
    turns = messages[len(head) :]
    ids = chat.prompt_ids(head + turns)
    while len(ids) > context // 2 and len(turns) > 2:
        turns = turns[2:]  # a question and its answer
        ids = chat.prompt_ids(head + turns)
    if len(ids) > context:
        raise UserError(
            f"the question has {len(ids)} tokens, and the model's context {context}",
            fix="ask more briefly",
        )
    return ids


def converse(
    engine: Engine, chat: ChatFormat, question: str, sampling: Sampling, page: Page
) -> None:
    """Answer, ask for the next question, and so on, until `q` or the end of the input.

    Raises:
        EOFError: there are no more questions.
    """
    messages: list[dict[str, Any]] = []
    question = question or page.ask(ASK)
    number = 0
    while question.strip() != "q":
        if question.strip():
            messages.append({"role": "user", "content": question})
            said = answer(engine, chat, messages, sampling, page, number)
            messages.append({"role": "assistant", "content": said})
            number += 1
        question = page.ask(ASK)
