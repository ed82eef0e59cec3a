"""From what a client asks to what the engine is asked."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from sparrowlm.errors import UserError
from sparrowlm.infer.engine import Request
from sparrowlm.infer.sampling import Sampling
from sparrowlm.share.server.faults import ApiFault, fault_of
from sparrowlm.share.server.requests import ChatRequest, CompletionRequest, Settings
from sparrowlm.share.server.service import Served

DEFAULTS = Sampling(temperature=0.8, top_k=50)
"""What a request gets that does not say otherwise, as `sparrow generate` and `chat` have it. OpenAI
itself takes temperature 1, at which a small model is wild."""


def chat_prompt(body: ChatRequest, model: Served) -> list[int]:
    """The ids that an answer is written behind.

    Raises:
        ApiFault: not a chat model, a message that the template refuses, or too long.
    """
    if model.chat is None:
        raise ApiFault(
            400,
            f"{model.name} is a base model: it continues text, and was never taught the turns of a"
            " chat. Ask /v1/completions",
            param="model",
            code="not_a_chat_model",
        )
    messages = [message.plain() for message in body.messages]
    try:
        ids = model.chat.prompt_ids(messages, body.told_tools, body.thinking)
    except UserError as fault:
        raise _named(fault, "messages") from fault
    return _fitting(ids, model, "messages")


def text_prompts(body: CompletionRequest, model: Served) -> list[list[int]]:
    """The ids of every prompt, given as text or as ids.

    Raises:
        ApiFault: the vocabulary cannot write it, or it is too long.
    """
    try:
        found = [model.engine.prompt(one) if isinstance(one, str) else one for one in body.prompts]
    except UserError as fault:
        raise _named(fault, "prompt") from fault
    size = model.engine.vocab_size
    if any(id >= size for ids in found for id in ids):
        told = f"the prompt holds an id outside the {size} of the model"
        raise ApiFault(400, told, param="prompt", code="invalid_value")
    return [_fitting(ids, model, "prompt") for ids in found]


def completions_of(
    body: Settings, prompts: Sequence[Sequence[int]], model: Served, tops: int | None
) -> list[Request]:
    """What the engine is asked: of every prompt its `n` completions, side by side.

    Args:
        body: the settings.
        prompts: ids.
        model: whose turn-ending ids end an answer, too.
        tops: as of `Request.logprobs`.
    """
    given = {
        name: value
        for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        if (value := getattr(body, name)) is not None
    }
    sampling = Sampling(
        **({name: getattr(DEFAULTS, name) for name in DEFAULTS.filters._fields} | given),
        # Without a seed every answer is another.
        seed=secrets.randbelow(2**31) if body.seed is None else body.seed,
        max_tokens=body.limit or model.engine.context,
        stop=body.stops,
    )
    ends = frozenset() if model.chat is None else model.chat.end_ids
    return [
        Request(ids, sampling, sample, ends, tops)
        for ids in prompts
        for sample in range(body.n or 1)
    ]


def _fitting(ids: list[int], model: Served, param: str) -> list[int]:
    """The ids, where one more has room behind them. `max_tokens` is a bound and no demand: an
    answer that fills the context ends there."""
    context = model.engine.context
    if len(ids) <= context:
        return ids
    raise ApiFault(
        400,
        f"the prompt has {len(ids)} tokens, and the model's context is {context}: shorten it by"
        f" {len(ids) - context} or more",
        param=param,
        code="context_length_exceeded",
    )


def _named(fault: UserError, param: str) -> ApiFault:
    told = fault_of(fault)
    return ApiFault(told.status, told.message, param=param, code=told.code)
