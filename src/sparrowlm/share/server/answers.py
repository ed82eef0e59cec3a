"""From an engine's pieces to what a client gets, the same whether it is streamed or not.

A `ChatRow` or `TextRow` turns each piece into the choices of a chunk; the whole answer is those
choices put together again. So there is one way to cut a text into thoughts, content and calls.
"""

from __future__ import annotations

import codecs
import uuid
from collections.abc import Iterator, Sequence

from sparrowlm.infer.engine import End, Piece
from sparrowlm.share.server.responses import (
    AnswerMessage,
    ChatChoice,
    ChatLogprobs,
    ChunkChoice,
    Delta,
    Finish,
    FunctionCall,
    Likely,
    TextChoice,
    TextLogprobs,
    TokenLogprob,
    ToolCallMade,
)
from sparrowlm.text.reply import CALL_CLOSES, CALL_OPENS, Fragment, ReplyReader, parse_tool_call
from sparrowlm.text.tokenizer import Tokenizer

LEAST = -9999.0
"""Stands for minus infinity, which JSON cannot write; OpenAI's choice."""

_FINISH: dict[End, Finish] = {
    "end_of_text": "stop",
    "stop": "stop",
    "max_tokens": "length",
    "context": "length",
}


class Speller:
    """How a token is shown."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._bytes = tokenizer.token_bytes
        self._names = {id: name for name, id in tokenizer.special_ids.items()}

    def text(self, id: int) -> str:
        """A token's text; bytes that are no whole character are written like `\\xe9`."""
        return self._names.get(id) or self._bytes(id).decode("utf-8", "backslashreplace")

    def raw(self, id: int) -> list[int] | None:
        """A token's bytes; None of a special one."""
        return None if id in self._names else list(self._bytes(id))

    def likely(self, piece: Piece) -> TokenLogprob:
        """A drawn token with its log-probability and the likeliest instead."""
        tops = [
            Likely(token=self.text(id), logprob=max(nats, LEAST), bytes=self.raw(id))
            for id, nats in piece.top
        ]
        nats = max(LEAST if piece.logprob is None else piece.logprob, LEAST)
        spelled, raw = self.text(piece.token), self.raw(piece.token)
        return TokenLogprob(token=spelled, logprob=nats, bytes=raw, top_logprobs=tops)


class ChatRow:
    """One answer of a chat as it comes.

    Args:
        index: which of the `n`.
        tokenizer: of the model.
        prompt: the ids that it is written behind.
        tools: calls are taken out of the content; otherwise they stay in it as they were written.
        logprobs: each choice has those of the tokens since the last.
    """

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        tools: bool,
        logprobs: bool,
    ) -> None:
        self.index = index
        self._reader = ReplyReader(tokenizer, prompt)
        self._tools, self._calls = tools, 0
        self._said = False  # any content
        self._spell = Speller(tokenizer) if logprobs else None
        self._likely: list[TokenLogprob] = []

    def begin(self) -> Iterator[ChunkChoice]:
        """What stands before the first token."""
        yield self._choice(Delta(role="assistant", content=""))

    def push(self, piece: Piece) -> Iterator[ChunkChoice]:
        """What a piece adds; a token that says nothing yet is told of with the next that does."""
        if self._spell is not None:
            self._likely.append(self._spell.likely(piece))
        fragments = self._reader.push(piece.token, piece.text)
        if piece.end:
            fragments += self._reader.finish()
        for fragment in fragments:
            yield self._choice(self._delta(fragment))
        if piece.end:
            finish = _FINISH[piece.end]
            called = self._calls and finish == "stop"
            yield self._choice(Delta(), "tool_calls" if called else finish)

    def _delta(self, fragment: Fragment) -> Delta:
        match fragment.kind:
            case "thinking":
                return Delta(reasoning_content=fragment.text)
            case "content":
                self._said = True
                return Delta(content=fragment.text)
            case "tool_call":
                call = parse_tool_call(fragment.text) if self._tools else None
                if call is None:  # as it was written, for the client to see
                    before, self._said = "\n" * self._said, True
                    return Delta(content=f"{before}{CALL_OPENS}\n{fragment.text}\n{CALL_CLOSES}")
                name, arguments = call
                made = ToolCallMade(
                    index=self._calls,
                    id=f"call_{uuid.uuid4().hex[:24]}",
                    type="function",
                    function=FunctionCall(name=name, arguments=arguments),
                )
                self._calls += 1
                return Delta(tool_calls=[made])

    def _choice(self, delta: Delta, finish: Finish | None = None) -> ChunkChoice:
        logprobs = None
        if self._likely:
            logprobs = ChatLogprobs(content=self._likely, refusal=None)
            self._likely = []
        return ChunkChoice(index=self.index, delta=delta, logprobs=logprobs, finish_reason=finish)

    def whole(self, parts: Sequence[ChunkChoice]) -> ChatChoice:
        """The answer that the choices of its chunks add up to."""
        deltas = [part.delta for part in parts]
        content = "".join(delta.content or "" for delta in deltas)
        thought = "".join(delta.reasoning_content or "" for delta in deltas)
        made = [call for delta in deltas for call in delta.tool_calls or ()]
        message = AnswerMessage(role="assistant", content=content, refusal=None)
        if thought:
            message.reasoning_content = thought
        if made:
            message.content = content or None
            message.tool_calls = [
                ToolCallMade(id=call.id, type="function", function=call.function) for call in made
            ]
        told = [part.logprobs for part in parts if part.logprobs is not None]
        likely = ChatLogprobs(content=[one for some in told for one in some.content], refusal=None)
        return ChatChoice(
            index=self.index,
            message=message,
            logprobs=likely if told else None,
            finish_reason=parts[-1].finish_reason or "stop",
        )


class TextRow:
    """One completion of a text as it comes.

    Args:
        index: which of all that were asked for.
        tokenizer: of the model.
        echo: the prompt, where it is to be said first.
        logprobs: each choice has those of the tokens since the last.
    """

    def __init__(self, index: int, tokenizer: Tokenizer, echo: str, logprobs: bool) -> None:
        self.index, self._echo = index, echo
        self._spell = Speller(tokenizer) if logprobs else None
        self._bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._offset = 0
        self._told = _no_logprobs()

    def begin(self) -> Iterator[TextChoice]:
        """The prompt, where it was asked for."""
        if self._echo:
            yield self._choice(self._echo, None)

    def push(self, piece: Piece) -> Iterator[TextChoice]:
        """What a piece adds; a token that says nothing yet is told of with the next that does."""
        if self._spell is not None:
            self._tell(self._spell.likely(piece))
            self._offset += len(self._decoder.decode(self._bytes(piece.token)))
        if piece.text or piece.end:
            yield self._choice(piece.text, _FINISH[piece.end] if piece.end else None)

    def _tell(self, likely: TokenLogprob) -> None:
        self._told.tokens.append(likely.token)
        self._told.token_logprobs.append(likely.logprob)
        self._told.top_logprobs.append({top.token: top.logprob for top in likely.top_logprobs})
        self._told.text_offset.append(self._offset)

    def _choice(self, text: str, finish: Finish | None) -> TextChoice:
        logprobs = None
        if self._spell is not None:
            logprobs, self._told = self._told, _no_logprobs()
        return TextChoice(index=self.index, text=text, logprobs=logprobs, finish_reason=finish)

    def whole(self, parts: Sequence[TextChoice]) -> TextChoice:
        """The completion that the choices of its chunks add up to."""
        text = "".join(part.text for part in parts)
        told = [part.logprobs for part in parts if part.logprobs is not None]
        logprobs = _no_logprobs()
        for some in told:
            logprobs.tokens += some.tokens
            logprobs.token_logprobs += some.token_logprobs
            logprobs.top_logprobs += some.top_logprobs
            logprobs.text_offset += some.text_offset
        return TextChoice(
            index=self.index,
            text=text,
            logprobs=logprobs if told else None,
            finish_reason=parts[-1].finish_reason,
        )


def _no_logprobs() -> TextLogprobs:
    return TextLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
