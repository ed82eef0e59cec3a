"""What a client may ask: every field with its range, and what is refused because it would be
passed over in silence.

A field that changes what is written and is not understood here is refused, by name; one that only
tells something (`user`, `metadata`) or asks for what is so anyway is taken and passed over.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

LONGEST_STOP, MOST_STOPS, MOST_LOGPROBS, MOST_SAMPLES = 200, 16, 20, 128

Stop = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
Zero = Annotated[float, Field(ge=0, le=0)]
Id = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
Ids = Annotated[list[Id], Field(min_length=1)]
SOME = Field(min_length=1, max_length=MOST_SAMPLES)


class Strict(BaseModel):
    """No NaN, no infinity, no word for a number, no field that is not listed."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


class TextPart(Strict):
    """A part of a message's content; text is the only kind that this model reads."""

    type: Literal["text"]
    text: str


class CalledFunction(Strict):
    """A function's name and its arguments as JSON in a string."""

    name: str
    arguments: str


class ToolCall(Strict):
    """A call that the assistant made in an earlier turn."""

    id: str = ""
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class ChatMessage(Strict):
    """A turn so far. What only names it (`name`, `tool_call_id`) is not told to the model."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: list[Any] | None = None

    def plain(self) -> dict[str, Any]:
        """As `text.turns.message_of` reads it."""
        content = self.content
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        role = "system" if self.role == "developer" else self.role
        found: dict[str, Any] = {"role": role, "content": content}
        if self.reasoning_content is not None:
            found["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            found["tool_calls"] = [
                {"name": call.function.name, "arguments": call.function.arguments}
                for call in self.tool_calls
            ]
        return found


class Function(Strict):
    """What the model is told of a tool."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Literal[False] | None = None


class Tool(Strict):
    """A tool that may be called."""

    type: Literal["function"]
    function: Function

    def plain(self) -> dict[str, Any]:
        """As the template writes it: what was given and nothing else."""
        return self.model_dump(exclude_none=True)


class StreamOptions(Strict):
    """What a stream tells besides its text."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class TemplateOptions(Strict):
    """vLLM's way to reach the chat template."""

    enable_thinking: bool | None = None


class ResponseFormat(Strict):
    """Only plain text: nothing here holds a model to JSON."""

    type: Literal["text"]


class Settings(Strict):
    """What both routes understand."""

    model: str | None = None
    """One of `/v1/models`; left out, the run itself."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(ge=0, le=1)] = None
    top_k: Annotated[int | None, Field(ge=0, lt=2**31)] = None
    min_p: Annotated[float | None, Field(ge=0, le=1)] = None
    repetition_penalty: Annotated[float | None, Field(ge=0.01, le=100)] = None
    seed: Annotated[int | None, Field(ge=0, lt=2**63)] = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    n: Annotated[int | None, Field(ge=1, le=MOST_SAMPLES)] = None
    max_tokens: Annotated[int | None, Field(ge=1, lt=2**31)] = None
    # Refused unless they ask for nothing.
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    logit_bias: Annotated[dict[str, float] | None, Field(max_length=0)] = None
    # Passed over: they change nothing that is written.
    user: str | None = None
    metadata: dict[str, Any] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, however they were given."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def limit(self) -> int | None:
        """Most tokens of a completion; None: as many as the context holds."""
        return self.max_tokens


class ChatRequest(Settings):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int | None, Field(ge=1, lt=2**31)] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=MOST_LOGPROBS)] = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: Literal[True] | None = None
    chat_template_kwargs: TemplateOptions | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text"]] | None = None
    # Passed over.
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="after")
    def _agree(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        told = self.chat_template_kwargs and self.chat_template_kwargs.enable_thinking
        if self.reasoning_effort and told is not None and told != self._effort:
            raise ValueError("reasoning_effort and enable_thinking say different things")
        if self.max_tokens and self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens are the same: give one of them")
        return self

    @property
    def _effort(self) -> bool:
        return self.reasoning_effort not in (None, "none")

    @property
    def thinking(self) -> bool:
        """Whether the answer begins with a thought: off unless asked for."""
        told = self.chat_template_kwargs and self.chat_template_kwargs.enable_thinking
        return self._effort if told is None else told

    @property
    def limit(self) -> int | None:
        """`max_completion_tokens`, or `max_tokens`, its older name."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def tops(self) -> int | None:
        """How many likeliest tokens beside each; None: no log-probabilities at all."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def told_tools(self) -> list[dict[str, Any]]:
        """The tools that the model is told of."""
        return [] if self.tool_choice == "none" else [tool.plain() for tool in self.tools or ()]


class CompletionRequest(Settings):
    """The body of `/v1/completions`."""

    prompt: str | Ids | Annotated[list[str], SOME] | Annotated[list[Ids], SOME] = ""
    logprobs: Annotated[int | None, Field(ge=0, le=MOST_LOGPROBS)] = None
    echo: bool | None = None
    # Refused unless they ask for nothing.
    best_of: Annotated[int | None, Field(ge=1, le=MOST_SAMPLES)] = None
    suffix: Annotated[str | None, Field(max_length=0)] = None

    @model_validator(mode="after")
    def _agree(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of is not offered: ask for n and choose")
        if self.echo and self.logprobs is not None:
            raise ValueError("logprobs of an echoed prompt are not offered: leave out echo")
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """One or several, however they were given."""
        given: Any = self.prompt
        several = isinstance(given, list) and not isinstance(given[0], int)
        return given if several else [given]

    @property
    def tops(self) -> int | None:
        """How many likeliest tokens beside each; None: no log-probabilities at all."""
        return self.logprobs


FIELDS: frozenset[str] = frozenset(
    name
    for model in (
        ChatRequest, CompletionRequest, ChatMessage, TextPart, ToolCall, CalledFunction, Tool,
        Function, StreamOptions, TemplateOptions, ResponseFormat,
    )
    for name in model.model_fields
)  # fmt: skip
"""Every name that a request may hold."""
