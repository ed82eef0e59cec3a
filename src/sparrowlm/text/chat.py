"""How a conversation is written down: the one place that knows a template.

Training, chatting, serving and rollouts go through `ChatFormat`. A conversation is put together
piece by piece: what the template writes becomes special tokens by their ids, what people and models
wrote is encoded as text, which never becomes a special. So which token is learned is known when it
is placed, and never looked for afterwards.

    <|im_start|>user\n…<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n…<|im_end|>\n
                                                                            learned: ^^^^^^^^^^^

What the generation prompt writes is prompt; what the model would go on with is learned.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sparrowlm.errors import DataError, TokenizerError
from sparrowlm.text.turns import Conversation, Message, conversation_of, dump

if TYPE_CHECKING:
    from sparrowlm.text.tokenizer import Tokenizer

# ChatML as Qwen3 and minimind read it: `messages` with role, content, reasoning_content,
# tool_calls; `tools`; `add_generation_prompt`; `enable_thinking` (Qwen3) or `open_thinking`
# (minimind). An assistant's turn always has its <think> block, empty where it holds no thought,
# so that what is trained on and what is prompted with are the same text.
CHAT_TEMPLATE = r"""
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\n\n' }}
    {%- endif %}
    {{- "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n" }}
    {{- "You are provided with function signatures within <tools></tools> XML tags:\n<tools>" }}
    {%- for tool in tools %}
        {{- '\n' }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools>\n\nFor each function call, return a json object with function name and " }}
    {{- "arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n" }}
    {{- '{"name": <function-name>, "arguments": <args-json-object>}' }}
    {{- '\n</tool_call><|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].split('<think>')[-1] %}
            {%- set content = content.split('</think>')[-1] %}
        {%- endif %}
        {{- '<|im_start|>assistant\n<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' }}
        {{- content.lstrip('\n') }}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if content or not loop.first %}
                {{- '\n' }}
            {%- endif %}
            {%- set call = tool_call.function or tool_call %}
            {{- '<tool_call>\n{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' + content + '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking | default(false) or open_thinking | default(false) %}
        {{- '<think>\n' }}
    {%- else %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
""".strip()

START, END = "<|im_start|>", "<|im_end|>"
NO_THOUGHT = "<think>\n\n</think>\n\n"
TOOLS_BEFORE = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
TOOLS_BEHIND = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments"
    " within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)


class Encoded(NamedTuple):
    """A conversation as ids."""

    ids: np.ndarray
    """(n,) int64."""
    mask: np.ndarray
    """(n,) bool: what the assistant wrote, its end token included."""


class Part(NamedTuple):
    """A stretch of a conversation's text."""

    text: str
    structure: bool
    """Written by the template, so that a special token's name in it is that token."""
    author: int = -1
    """Which message's assistant writes it; -1: it is prompt."""


def parts_of(messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> Iterator[Part]:
    """`CHAT_TEMPLATE`, in pieces."""
    first = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
    if tools:
        yield Part(f"{START}system\n", True)
        if first is not None:
            yield Part(f"{first}\n\n", False)
        yield Part(TOOLS_BEFORE, True)
        for tool in tools:
            yield Part(f"\n{dump(tool)}", False)
        yield Part(f"{TOOLS_BEHIND}{END}\n", True)
    elif first is not None:
        yield from _turn("system", first)
    for number, message in enumerate(messages):
        match message["role"]:
            case "user":
                yield from _turn("user", message["content"])
            case "system" if number:
                yield from _turn("system", message["content"])
            case "assistant":
                yield from _answer(message, number)
            case "tool":
                before = messages[number - 1]["role"] if number else ""
                behind = messages[number + 1]["role"] if number + 1 < len(messages) else ""
                yield Part((f"{START}user" if before != "tool" else ""), True)
                yield Part("\n<tool_response>\n", True)
                yield Part(message["content"], False)
                yield Part("\n</tool_response>", True)
                yield Part(f"{END}\n" if behind != "tool" else "", True)


def prompt_part(thinking: bool) -> Part:
    """What an answer begins with."""
    return Part(f"{START}assistant\n" + ("<think>\n" if thinking else NO_THOUGHT), True)


def _turn(role: str, content: str) -> Iterator[Part]:
    yield Part(f"{START}{role}\n", True)
    yield Part(content, False)
    yield Part(f"{END}\n", True)


def _answer(message: Message, number: int) -> Iterator[Part]:
    """An assistant's turn; what it does not begin with by itself is its own."""
    content, thought = message["content"], (message.get("reasoning_content") or "").strip("\n")
    yield prompt_part(bool(thought))
    if thought:
        yield Part(thought, False, number)
        yield Part("\n</think>\n\n", True, number)
    yield Part(content.lstrip("\n"), False, number)
    for place, call in enumerate(message.get("tool_calls") or ()):
        arguments = call["arguments"]
        yield Part("\n" if content or place else "", True, number)
        yield Part('<tool_call>\n{"name": "', True, number)
        yield Part(call["name"], False, number)
        yield Part('", "arguments": ', True, number)
        yield Part(arguments if isinstance(arguments, str) else dump(arguments), False, number)
        yield Part("}\n</tool_call>", True, number)
    yield Part(END, True, number)
    yield Part("\n", True)


class ChatFormat:
    """How one tokenizer's conversations become ids.

    A tokenizer with another template than ours is asked for what it would render, in Jinja's
    sandbox: where that is what ours writes, nothing differs; otherwise the pieces are derived from
    it (`text.jinja`).

    Args:
        tokenizer: of a chat; its template is that of its `tokenizer_config.json`, or ours where it
            has none.

    Raises:
        TokenizerError: it has no special tokens for turns, or its template cannot be read.

    >>> format = ChatFormat(tokenizer)
    >>> format.prompt_ids([{"role": "user", "content": "hello"}])
    [1, 478, 10, …]
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        chatml = {START, END} <= tokenizer.special_ids.keys()
        foreign = tokenizer.chat_template not in (None, "", CHAT_TEMPLATE)
        if not chatml and not foreign:
            raise TokenizerError(
                f"has no special tokens {START} and {END}, which mark the turns of a chat",
                where=f"a tokenizer of kind {tokenizer.kind}",
                why="a turn written in letters could be forged by anyone who types it",
                fix='pretrain with tokenizer.kind = "bpe", whose vocabulary has them, or name a'
                ' tokenizer of a chat model: tokenizer.kind = "folder" with tokenizer.path',
            )
        names = sorted(tokenizer.special_ids, key=len, reverse=True)
        self._specials = re.compile("|".join(map(re.escape, names)))
        self._foreign = _foreign(tokenizer, chatml) if foreign else None

    @property
    def end_ids(self) -> frozenset[int]:
        """The ids that end an answer."""
        ends = {self.tokenizer.eot_id} if self.tokenizer.eot_id is not None else set()
        if self._foreign is None or self._foreign.like_ours:
            return frozenset(ends | {self.tokenizer.special_ids[END]})
        probe = conversation_of(
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        )
        ids, mask = self.encode(probe)
        return frozenset(ends | {int(ids[mask][-1])})

    def text(self, conversation: Conversation) -> str:
        """What the template renders."""
        return "".join(part.text for part in self.parts(conversation))

    def parts(self, conversation: Conversation) -> list[Part]:
        """The pieces of a conversation.

        Raises:
            DataError: a foreign template refuses it, or which part is the assistant's cannot be
                told.
        """
        messages, tools, _ = conversation
        if self._foreign is not None:
            return self._foreign.parts(messages, tools)
        return list(parts_of(messages, tools))

    def encode(self, conversation: Conversation) -> Encoded:
        """The ids of a conversation and which of them are learned.

        Raises:
            DataError: as `parts`.
        """
        return self.encode_parts([(self.parts(conversation), conversation.given)])[0]

    def encode_parts(self, found: Sequence[tuple[Sequence[Part], int]]) -> list[Encoded]:
        """Many at once: the pieces of each, and how many messages of it are prompt.

        Raises:
            DataError: the ids of a foreign tokenizer do not decode to the text.
        """
        cut = [list(self._cut(parts)) for parts, _ in found]
        texts = list({piece: None for pieces in cut for piece, _ in pieces if type(piece) is str})
        known = dict(zip(texts, self.tokenizer.encode_batch(texts, threads=1), strict=True))
        done = []
        for pieces, (parts, given) in zip(cut, found, strict=True):
            ids = [np.array([one]) if isinstance(one, int) else known[one] for one, _ in pieces]
            learned = np.array([author >= given for _, author in pieces], bool)
            encoded = Encoded(
                np.concatenate([np.empty(0, np.int64), *ids]).astype(np.int64),
                np.repeat(learned, list(map(len, ids))),
            )
            if self._foreign is not None:
                self._verify(encoded, parts)
            done.append(encoded)
        return done

    def prompt_ids(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] = (),
        thinking: bool = False,
    ) -> list[int]:
        """What an answer is written behind: the conversation so far and an assistant's beginning.
        The ids are those that `encode` puts before the answer.

        Args:
            messages: so far, as `message_of` reads them.
            tools: that may be called.
            thinking: let the answer begin with its reasoning.

        Raises:
            DataError: a message that is none.
        """
        parts = self.prompt_parts(messages, tools, thinking)
        return self.encode_parts([(parts, len(messages))])[0].ids.tolist()

    def prompt_parts(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] = (),
        thinking: bool = False,
    ) -> list[Part]:
        """The pieces of what `prompt_ids` encodes."""
        found = conversation_of(messages, tools)
        if self._foreign is not None:
            return self._foreign.parts(found.messages, found.tools, prompt=True, thinking=thinking)
        return [*parts_of(found.messages, found.tools), prompt_part(thinking)]

    def _cut(self, parts: Sequence[Part]) -> Iterator[tuple[str | int, int]]:
        """Special tokens as ids and the text between them as strings, with whose they are. Text is
        joined up to where the author changes, so that a prompt has the same ids alone."""
        for author, own in groupby(parts, key=lambda part: part.author):
            held: list[str] = []
            for part in own:
                start = 0
                for mark in self._specials.finditer(part.text) if part.structure else ():
                    held.append(part.text[start : mark.start()])
                    if text := "".join(held):
                        yield text, author
                    yield self.tokenizer.special_ids[mark[0]], author
                    held, start = [], mark.end()
                held.append(part.text[start:])
            if text := "".join(held):
                yield text, author

    def _verify(self, encoded: Encoded, parts: Sequence[Part]) -> None:
        text = "".join(part.text for part in parts)
        if self.tokenizer.decode(encoded.ids, specials=True) != text:
            raise DataError(
                "the ids of a conversation do not decode to the text of the template",
                why="the tokenizer changes text, or puts a space before every piece",
                fix="use a tokenizer that keeps text as it is, such as byte-level BPE",
            )


def _foreign(tokenizer: Tokenizer, chatml: bool) -> Any:
    from sparrowlm.text.jinja import ForeignTemplate

    return ForeignTemplate(tokenizer, chatml)
