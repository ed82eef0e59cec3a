"""Tiny models behind a real server: uvicorn in a thread, on a port of its own."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import httpx
import openai
import torch
import torch.nn.functional as F
from torch import Tensor

from sparrowlm.config import ModelConfig, TokenizerConfig
from sparrowlm.infer.engine import Engine
from sparrowlm.model.cache import KVCache
from sparrowlm.model.transformer import Output, Transformer
from sparrowlm.share.server.gates import Rules
from sparrowlm.share.server.limits import Limits
from sparrowlm.share.server.running import Server, listen
from sparrowlm.share.server.service import Served
from sparrowlm.text.chat import ChatFormat
from sparrowlm.text.tokenizer import Tokenizer, make_tokenizer
from support import cpu
from writing_support import random_model

TEXT = "the sparrow is small, and no organ is missing. 麻雀虽小，五脏俱全。 " * 20
CONTEXT = 640
"""Room for a prompt with a tool: in so small a vocabulary it has 510 tokens."""


@cache
def chat_tokenizer() -> Tokenizer:
    """Bytes, the specials of a chat and some merges."""
    return make_tokenizer(TokenizerConfig(vocab_size=320), lambda: [TEXT])


def tagged(text: str) -> list[int]:
    """The ids of a text in which the names of special tokens are those tokens."""
    tokenizer = chat_tokenizer()
    names = "|".join(map(re.escape, tokenizer.special_ids))
    ids: list[int] = []
    for part in re.split(f"({names})", text):
        special = tokenizer.special_ids.get(part)
        ids += [special] if special is not None else tokenizer.encode(part) if part else []
    return ids


@cache
def tiny_model(name: str, context: int = CONTEXT) -> Transformer:
    """Random weights that its name decides."""
    shape = ModelConfig(
        vocab_size=chat_tokenizer().vocab_size,
        d_model=32,
        n_layers=1,
        n_heads=2,
        max_seq_len=context,
    )
    return random_model(shape, seed=len(name)).float()


def served(
    name: str = "tiny", chat: bool = True, context: int = CONTEXT, parent: str | None = None
) -> Served:
    """A model that writes random tokens, broken characters and specials among them."""
    tokenizer = chat_tokenizer()
    engine = Engine(tiny_model(name, context), tokenizer, cpu(), slide=False)
    return Served(name, engine, ChatFormat(tokenizer) if chat else None, parent, 1234, 10)


class Scripted:
    """Stands in for a decoder that says what a test wants, and takes its time about it."""

    def __init__(self, config: ModelConfig) -> None:
        self.config, self.device, self.dtype = config, torch.device("cpu"), torch.float32
        self.captures = False
        self.ids: list[int] = []
        self.begin = 0  # the position whose token is the answer's first
        self.seconds = 0.0  # that a round takes
        self.fault: Exception | None = None

    def say(self, text: str, prompt: Sequence[int]) -> None:
        """Answer this prompt so; behind the answer the letter "a" follows for ever."""
        self.ids, self.begin = tagged(text), len(prompt)

    def __call__(self, tokens: Tensor, cache: KVCache) -> Output:
        time.sleep(self.seconds)
        if self.fault is not None:
            raise self.fault
        cache.advance(tokens.shape[1])
        chosen = [self._at(length - self.begin) for length in cache.lengths.tolist()]
        return Output(F.one_hot(torch.tensor(chosen)[:, None], self.config.vocab_size).float())

    def _at(self, place: int) -> int:
        return self.ids[place] if 0 <= place < len(self.ids) else tagged("a")[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """The chosen token leads by far."""
        return 50 * hidden


def scripted(name: str = "scripted", context: int = 2 * CONTEXT) -> tuple[Served, Scripted]:
    """A chat model whose answers a test decides."""
    found = served(name, context=context)
    script = Scripted(found.engine.decoder.config)
    found.engine.decoder = script  # pyright: ignore[reportAttributeAccessIssue]
    return found, script


class Running(NamedTuple):
    """A server that answers."""

    url: str
    server: Server

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rpartition(":")[2])

    def client(self, **options: Any) -> openai.OpenAI:
        """The real client; it does not try again by itself."""
        given = {"api_key": "none", "max_retries": 0, "timeout": 60.0} | options
        return openai.OpenAI(base_url=f"{self.url}/v1", **given)

    def http(self, **options: Any) -> httpx.Client:
        """A client of plain HTTP."""
        return httpx.Client(base_url=self.url, timeout=60.0, trust_env=False, **options)


@contextmanager
def running(
    models: Sequence[Served],
    rules: Rules | None = None,
    limits: Limits | None = None,
    slots: int | None = None,
    send_buffer: int = 0,
) -> Iterator[Running]:
    """Serve for as long as the block lasts; with a small buffer a slow reader is soon behind."""
    ready = threading.Event()
    with listen("127.0.0.1", 0) as waiting:
        if send_buffer:
            waiting.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        port = waiting.getsockname()[1]
        server = Server(models, rules or Rules(), limits or Limits(), slots, ready.set)
        thread = threading.Thread(target=server.answer, args=(waiting,), daemon=True)
        thread.start()
        assert ready.wait(30)
        try:
            yield Running(f"http://127.0.0.1:{port}", server)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


class Scene(NamedTuple):
    """A server whose answers a test decides."""

    running: Running
    client: openai.OpenAI
    model: Served
    script: Scripted

    def say(
        self,
        text: str,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]] = (),
        thinking: bool = False,
    ) -> None:
        """Answer this conversation so."""
        assert self.model.chat is not None
        self.script.say(text, self.model.chat.prompt_ids(messages, tools, thinking))


def until(true: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether something becomes true in time."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.005)
    return true()
