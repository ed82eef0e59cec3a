"""Prompts in, tokens and text out, several at once.

A `Session` takes requests that come and go; `stream` and `text` are for those that are all known
at the start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sparrowlm.errors import ConfigError
from sparrowlm.infer.completion import End, Piece, Request
from sparrowlm.infer.decoder import Decoder
from sparrowlm.infer.product import Weights
from sparrowlm.infer.sampling import Sampling
from sparrowlm.infer.session import CHUNK, Session
from sparrowlm.model.transformer import Transformer
from sparrowlm.runtime import Runtime
from sparrowlm.text.tokenizer import Tokenizer

__all__ = ["SLOTS", "End", "Engine", "Piece", "Request", "Session"]

SLOTS = 16
"""Sequences under way at once, unless told otherwise."""


class Engine:
    """A model that writes.

    Args:
        model: copied into the layout of `Decoder`, and left as it is.
        tokenizer: None where only ids are known; pieces have no text then.
        runtime: of the model; the precision is that of products and cache.
        slots: sequences under way at once.
        slide: where a sequence fills the context, go on with the last half of it. Otherwise it
            ends there.
        compile: as of `Decoder`; on CUDA record decoding steps as graphs.
        weights: as of `Decoder`.
        exact: as of `Session`, and `stream` has all its slots and the whole context then.

    >>> engine = Engine(model, tokenizer, runtime)
    >>> engine.text("Once upon a time", Sampling(temperature=0.8, max_tokens=40))
    ', there was a sparrow …'
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer | None,
        runtime: Runtime,
        *,
        slots: int = SLOTS,
        slide: bool = True,
        compile: bool = False,
        weights: Weights = "full",
        exact: bool = False,
    ) -> None:
        self.decoder = Decoder(model, runtime.autocast_dtype, compile=compile, weights=weights)
        self.tokenizer, self.slots = tokenizer, slots
        self.slide, self.exact = slide, exact
        self.graphs = compile and runtime.device.type == "cuda"
        self.context = model.config.max_seq_len
        self.eot_id = None if tokenizer is None else tokenizer.eot_id
        # A table may be larger than the vocabulary; its spare rows mean nothing.
        self.vocab_size = model.config.vocab_size if tokenizer is None else tokenizer.vocab_size

    def prompt(self, text: str) -> list[int]:
        """The ids of a text. Of an empty one the end-of-text token, which is what stood before
        every document in training; without such a token a line end, or else id 0.

        Raises:
            TokenizerError: the vocabulary cannot write the text.
            ConfigError: text, but no tokenizer.
        """
        if self.tokenizer is None:
            if text:
                raise ConfigError("text cannot become ids without a tokenizer", where="prompt")
            return [0]
        if text:
            return self.tokenizer.encode(text)
        if self.eot_id is not None:
            return [self.eot_id]
        newline = [id for id in range(self.vocab_size) if self.tokenizer.token_bytes(id) == b"\n"]
        return newline or [0]

    def text(self, prompt: str, sampling: Sampling) -> str:
        """The completion of a text, whole."""
        request = Request(self.prompt(prompt), sampling)
        return "".join(piece.text for piece in self.stream([request]))

    def session(
        self,
        *,
        slots: int | None = None,
        max_len: int | None = None,
        chunk: int | None = CHUNK,
    ) -> Session:
        """Requests that come and go.

        Args:
            slots: completions under way at once; as the engine's unless told otherwise.
            max_len: ids of a completion and its prompt; the model's context unless less is asked.
            chunk: tokens of prompts that one round reads at most; None: whatever waits.
        """
        return Session(
            self.decoder,
            self.tokenizer,
            slots=slots or self.slots,
            max_len=min(max_len or self.context, self.context),
            vocab_size=self.vocab_size,
            eot_id=self.eot_id,
            slide=self.slide,
            chunk=chunk,
            exact=self.exact,
            graphs=self.graphs,
        )

    def stream(self, requests: Sequence[Request]) -> Iterator[Piece]:
        """Write, piece by piece; the pieces of different rows come interleaved.

        A row's draws depend on its seed, its sample and how far it is, never on the rows around
        it; its logits do so in the last bits of the precision, unless the engine is exact.

        Raises:
            UserError: a prompt is empty, longer than the context, or not of this vocabulary.
            ConfigError: stop strings without a tokenizer.
            RunError: the model's logits are not numbers.
        """
        if not requests:
            return
        slots = max_len = None
        if not self.exact:
            # As large as these requests can need: all tokens but the last drawn are read.
            max_len = max(len(one.prompt) + one.sampling.max_tokens - 1 for one in requests)
            slots = min(self.slots, len(requests))
        session = self.session(slots=slots, max_len=max_len, chunk=None)
        for request in requests:
            session.submit(request)
        while session.busy:
            yield from session.round()
