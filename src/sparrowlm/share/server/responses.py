"""What a client gets, field by field as OpenAI's clients read it.

What was not set is left out (`exclude_unset`), so a field is null only where it was set to be null.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

_CONSTANT = {"object", "owned_by"}

Finish = Literal["stop", "length", "tool_calls"]


class Told(BaseModel):
    """What is said to a client; the words that never change count as set."""

    def model_post_init(self, _context: Any) -> None:
        self.model_fields_set.update(_CONSTANT & type(self).model_fields.keys())


class Usage(Told):
    """Tokens read and drawn; the one that ends an answer is counted like any other."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Likely(Told):
    """A token and how likely it was."""

    token: str
    """Its text; bytes that are no whole character are written like `\\xe9`."""
    logprob: float
    """Nats, of the model's own distribution: before temperature and every other setting."""
    bytes: list[int] | None
    """Null of a special token."""


class TokenLogprob(Likely):
    """The token that was drawn."""

    top_logprobs: list[Likely]
    """The likeliest instead of it, in order."""


class ChatLogprobs(Told):
    """Every token drawn, those of thoughts, tags and the end included."""

    content: list[TokenLogprob]
    refusal: None = None


class FunctionCall(Told):
    """A call: the arguments are JSON in a string."""

    name: str
    arguments: str


class ToolCallMade(Told):
    """A call that the model made; streamed ones have their place among the calls."""

    id: str
    type: Literal["function"]
    function: FunctionCall
    index: int | None = None


class AnswerMessage(Told):
    """The assistant's turn."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallMade] | None = None
    refusal: None = None


class ChatChoice(Told):
    """One of the `n` answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class ChatCompletion(Told):
    """The answer of `/v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str


class Delta(Told):
    """What a chunk adds to an answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallMade] | None = None


class ChunkChoice(Told):
    """Of which answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None


class ChatChunk(Told):
    """One event of a stream of `/v1/chat/completions`."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    system_fingerprint: str
    usage: Usage | None = None


class TextLogprobs(Told):
    """The older form: four lists side by side."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]
    """Where in the text each token begins, in characters."""


class TextChoice(Told):
    """One completion of one prompt, or what a chunk adds to it."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Finish | None


class Completion(Told):
    """The answer of `/v1/completions`, and each event of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    system_fingerprint: str
    usage: Usage | None = None


class Defaults(Told):
    """What a request gets that does not say otherwise."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float


class About(Told):
    """What a page or program should know of a model, beyond OpenAI's fields."""

    kind: Literal["chat", "base"]
    """base: it continues text at /v1/completions and was never taught turns."""
    context: int
    """Most tokens of prompt and answer together."""
    vocab_size: int
    parameters: int
    step: int
    """Of training, from whose checkpoint the weights are."""
    adapters: list[str]
    """The other models here that are this one with changes."""
    defaults: Defaults
    max_stops: int
    max_top_logprobs: int
    max_samples: int


class Model(Told):
    """An entry of `/v1/models`."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["sparrow"] = "sparrow"
    parent: str | None
    """The run that an adapter changes."""
    max_model_len: int
    """The context, by vLLM's name."""
    sparrow: About


class Models(Told):
    """The answer of `/v1/models`."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(Told):
    """The answer of `/health`."""

    status: Literal["ok", "draining", "failed"]
    active: int
    """Completions under way."""
    waiting: int
    """Completions that wait for a slot."""
    slots: int


class Fault(Told):
    """What is wrong with a request."""

    message: str
    type: str
    param: str | None
    code: str | None


class FaultBody(Told):
    """Every answer that is none."""

    error: Fault
