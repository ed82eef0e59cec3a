"""A trained run in a Python program: what `sparrowlm.load` gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack

import numpy as np
import torch

from sparrowlm.infer.engine import Engine, Request
from sparrowlm.infer.sampling import Sampling
from sparrowlm.infer.scoring import logprobs
from sparrowlm.pipeline import Loaded, load_run
from sparrowlm.text.chat import ChatFormat
from sparrowlm.text.reply import Fragment, ReplyReader, message_from
from sparrowlm.text.turns import Message, message_of


class Settings(TypedDict, total=False):
    """How a completion is drawn; what is left out is as `sparrow generate` has it."""

    max_tokens: int
    """Longest completion; 200."""
    temperature: float
    """0 always takes the likeliest token; 0.8."""
    top_k: int
    """Choose among the k likeliest; 0: all; 50."""
    top_p: float
    """Choose among the likeliest that together hold this probability; 1."""
    min_p: float
    """Leave out tokens below this share of the likeliest one's probability; 0."""
    repetition_penalty: float
    """Above 1 makes tokens that occurred before less likely; 1."""
    seed: int
    """The same seed gives the same text; 1337."""
    stop: tuple[str, ...]
    """Strings that end a completion and are no part of it."""


class TokenLogprob(NamedTuple):
    """What a model thought of a token that is there."""

    token: int
    bytes: bytes
    """Of the token; a character may be spread over several."""
    logprob: float
    """Nats, given all that stands before."""


class LanguageModel:
    """A trained run.

    `model`, `tokenizer`, `recipe` and `runtime` of `loaded` are there for whoever wants more.

    >>> bird = sparrowlm.load("runs/python")
    >>> bird.generate("def area(width, height):", max_tokens=40, seed=7)
    '\\n    return width * height\\n'
    """

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded

    @cached_property
    def _engine(self) -> Engine:
        """For texts, which may be longer than the context."""
        return Engine(self.loaded.model, self.loaded.tokenizer, self.loaded.runtime)

    @cached_property
    def _answering(self) -> Engine:
        """For answers: one that forgets its question halfway is none, so it ends there."""
        return Engine(self.loaded.model, self.loaded.tokenizer, self.loaded.runtime, slide=False)

    @property
    def context(self) -> int:
        """Tokens that the model sees at most."""
        return self.loaded.model.config.max_seq_len

    @property
    def converses(self) -> bool:
        """Whether it was taught to answer; otherwise `chat` gives what a text would go on with."""
        return self.loaded.converses

    def generate(self, prompt: str = "", **settings: Unpack[Settings]) -> str:
        """The completion of a text, whole.

        Args:
            prompt: the beginning, at most `context` tokens; empty: a document from its start.
            settings: as of `Settings`.

        Raises:
            UserError: the prompt is longer than the context.
            ConfigError: an impossible setting, named.
        """
        return "".join(self.stream(prompt, **settings))

    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        tools: Sequence[dict[str, Any]] = (),
        thinking: bool = False,
        **settings: Unpack[Settings],
    ) -> Message:
        """The assistant's answer, as a message to append to the others.

        Args:
            messages: a question, or a conversation so far: `{"role": …, "content": …}` each.
            tools: signatures of functions that may be called, as OpenAI writes them.
            thinking: let it think first; that is `reasoning_content` of what is returned.
            settings: as of `Settings`.

        Raises:
            UserError: the conversation is longer than the context.
            DataError: a message that is none.
            TokenizerError: the vocabulary knows no turns.

        >>> bird.chat("What does `os.path.join` do?", temperature=0)["content"]
        "Join two or more pathname components, inserting '/' as needed."
        """
        return message_from(list(self._answer(messages, tools, thinking, settings)))

    def stream(
        self,
        prompt: str | Sequence[Message] = "",
        *,
        tools: Sequence[dict[str, Any]] = (),
        thinking: bool = False,
        **settings: Unpack[Settings],
    ) -> Iterator[str]:
        """A completion of a text, or an answer to a conversation, as it comes: whole characters,
        and of an answer what is said, without its thoughts and calls.

        Args:
            prompt: a text to go on with, or messages to answer.
            tools: as of `chat`.
            thinking: as of `chat`.
            settings: as of `Settings`.

        Raises:
            UserError, ConfigError, DataError, TokenizerError: as `generate` and `chat`.
        """
        if isinstance(prompt, str):
            request = Request(self._engine.prompt(prompt), _sampling(settings))
            yield from (piece.text for piece in self._engine.stream([request]) if piece.text)
            return
        for fragment in self._answer(prompt, tools, thinking, settings):
            if fragment.kind == "content":
                yield fragment.text

    def logprobs(self, text: str, *, given: str = "") -> list[TokenLogprob]:
        """How likely the model finds a text, token by token.

        Args:
            text: what is judged.
            given: what stands before it, encoded by itself; empty: the beginning of a document.

        Returns:
            A value for every token of `text`. Their sum is the text's log-probability.

        Raises:
            UserError: both together are longer than the context.

        >>> nats = -sum(one.logprob for one in bird.logprobs("import os\\n"))
        >>> nats / math.log(2) / len("import os\\n")  # bits per byte
        """
        before, ids = self._engine.prompt(given), self.loaded.tokenizer.encode(text)
        if not ids:
            return []
        said = logprobs(self.loaded.model, self.loaded.runtime, [[*before, *ids]], [len(before)])[
            0
        ].logprobs.tolist()
        bytes_of = self.loaded.tokenizer.token_bytes
        return [TokenLogprob(id, bytes_of(id), nats) for id, nats in zip(ids, said, strict=True)]

    @torch.inference_mode()
    def embed(self, texts: str | Sequence[str]) -> np.ndarray:
        """Texts as points: the mean of the last hidden states, scaled to length 1, so that a dot
        product is a cosine. A language model is not trained to make neighbors of what means the
        same; expect likeness of wording.

        Args:
            texts: each at most `context` tokens.

        Returns:
            (texts, D) float32, or (D,) for one text.

        Raises:
            UserError: a text is longer than the context.
        """
        if isinstance(texts, str):
            return self.embed([texts])[0]
        model, runtime = self.loaded.model, self.loaded.runtime
        points = np.empty((len(texts), model.config.d_model), np.float32)
        for row, text in enumerate(texts):
            ids = torch.tensor([self._engine.prompt(text)], device=runtime.device)
            with runtime.autocast():
                mean = model(ids).hidden[0].float().mean(0)  # (D,)
            points[row] = torch.nn.functional.normalize(mean, dim=0).cpu().numpy()
        return points

    def _answer(
        self,
        messages: str | Sequence[Message],
        tools: Sequence[dict[str, Any]],
        thinking: bool,
        settings: Settings,
    ) -> Iterator[Fragment]:
        """The parts of an answer, as they come."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        form = ChatFormat(self.loaded.tokenizer)
        prompt = form.prompt_ids([message_of(one) for one in messages], tools, thinking)
        reader = ReplyReader(self.loaded.tokenizer, prompt)
        request = Request(prompt, _sampling(settings), ends=form.end_ids)
        for piece in self._answering.stream([request]):
            yield from reader.push(piece.token, piece.text)
        yield from reader.finish()


def load(
    run: str | Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    adapter: str | Path | None = None,
) -> LanguageModel:
    """See `sparrowlm.load`."""
    found = None if adapter is None else Path(adapter)
    return LanguageModel(load_run(Path(run), device, precision, found))


def _sampling(settings: Settings) -> Sampling:
    return replace(Sampling(max_tokens=200, temperature=0.8, top_k=50), **settings)
