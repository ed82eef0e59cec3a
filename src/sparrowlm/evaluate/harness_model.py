"""Our model as lm-eval asks one. Imported only where lm-eval is there.

What is done with a text is what lm-eval's own `HFLM` does with the exported model, so the figures
are the same: no id stands before a text but where there is none at all, what is too long loses its
beginning, and writing ends at the first stop string.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from sparrowlm.errors import TokenizerError
from sparrowlm.evaluate.answering import Progress, Subject
from sparrowlm.infer.engine import Engine, Request
from sparrowlm.infer.sampling import Sampling
from sparrowlm.infer.scoring import logprobs
from sparrowlm.text.chat import ChatFormat
from sparrowlm.text.turns import conversation_of

MAX_TOKENS = 256  # of an answer, where a task says nothing: as HFLM
FILTERS = ("top_k", "top_p", "min_p", "repetition_penalty")


class SparrowLM(TemplateLM):
    """See the module.

    Args:
        subject: what is measured; its tokenizer has an end of text.
        chat: texts are rendered chats, in which special tokens are found by their names.
        progress: told how far requests are.

    Raises:
        TokenizerError: nothing could stand before a text of which every token is asked for.
    """

    def __init__(
        self, subject: Subject, *, chat: bool = False, progress: Progress | None = None
    ) -> None:
        super().__init__()
        self.subject, self.progress = subject, progress
        if subject.tokenizer.eot_id is None:
            raise TokenizerError(
                "has no <|endoftext|>, which lm-eval puts before a text",
                where=f"a tokenizer of kind {subject.tokenizer.kind}",
                fix="measure it on text: sparrow evaluate RUN --data FILE",
            )
        self._eot: int = subject.tokenizer.eot_id
        self._format = ChatFormat(subject.tokenizer) if chat else None
        names = sorted(subject.tokenizer.special_ids, key=len, reverse=True)
        self._specials = re.compile(f"({'|'.join(map(re.escape, names))})")

    @property
    def eot_token_id(self) -> int:
        """What ends a document."""
        return self._eot

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text of which every token is asked for."""
        tokenizer = self.subject.tokenizer
        return tokenizer.special_ids.get(tokenizer.special_names["bos_token"], self._eot)

    @property
    def max_length(self) -> int:
        """The context."""
        return self.subject.model.config.max_seq_len

    @property
    def tokenizer_name(self) -> str:
        """Names the cache of rendered chats."""
        return f"sparrow-{self.subject.tokenizer.fingerprint[:16]}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's text, for the record."""
        return self.subject.tokenizer.chat_template if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation so far as text: up to where an answer begins, or, as lm-eval asks where
        it puts the answer's first words there itself, up to the end of what was said last."""
        if self._format is None:
            raise ValueError("not made for chats")
        if add_generation_prompt:
            return "".join(part.text for part in self._format.prompt_parts(chat_history))
        text = self._format.text(conversation_of(chat_history))
        last = chat_history[-1]["content"].lstrip()
        last = last if last in text else last.rstrip()  # a template may strip what it is given
        return text[: text.rindex(last) + len(last)]

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """The ids of a text; only those of a rendered chat may be special."""
        tokenizer = self.subject.tokenizer
        if self._format is None:
            return tokenizer.encode(string)
        ids: list[int] = []
        for piece in self._specials.split(string):
            special = tokenizer.special_ids.get(piece)
            ids += tokenizer.encode(piece) if special is None else [special]
        return ids

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """As lm-eval cuts the two; a continuation that leaves the whole no longer than its context
        has ids of its own, where HFLM fails."""
        ids, own = super()._encode_pair(context, continuation)
        return ids, own or self.tok_encode(continuation)

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """(nats, greedy decoding would write it) of each continuation."""
        sequences = [[*context, *own][-(self.max_length + 1) :] for _, context, own in requests]
        first = [len(ids) - len(own) for ids, (_, _, own) in zip(sequences, requests, strict=True)]
        said = logprobs(
            self.subject.model, self.subject.runtime, sequences, first, self._told("log-likelihood")
        )
        return [(one.logprobs.double().sum().item(), bool(one.likeliest.all())) for one in said]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """The nats of whole texts, in lm-eval's own windows."""
        windows: list[tuple[Any, list[int], list[int]]] = []
        counts = []
        for (text,) in (request.args for request in requests):
            found = get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1
            )
            own = [(None, *make_disjoint_window(pair)) for pair in found]
            windows += own
            counts.append(len(own))
        nats = iter(nats for nats, _ in self._loglikelihood_tokens(windows))
        return [sum(next(nats) for _ in range(count)) for count in counts]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What is written behind each context, up to a stop string."""
        subject = self.subject
        engine = Engine(subject.model, subject.tokenizer, subject.runtime, slide=False)
        ends = frozenset() if self._format is None else self._format.end_ids
        [end] = [name for name, id in subject.tokenizer.special_ids.items() if id == self._eot]
        asked, stops = [], []
        for number, (context, settings) in enumerate(request.args for request in requests):
            settings = dict[str, Any](normalize_gen_kwargs(settings, MAX_TOKENS))
            until = handle_stop_sequences(settings.get("until"), eos=end)
            # HFLM refuses a task that asks for more than the context; half of it is left then.
            most = settings["max_gen_toks"]
            most = most if most < self.max_length else max(1, self.max_length // 2)
            ids = (self.tok_encode(context) or [self.prefix_token_id])[-(self.max_length - most) :]
            sampling = Sampling(
                temperature=settings.get("temperature", 0.0),
                max_tokens=most,
                stop=tuple(stop for stop in until if stop and stop != end),
                **{name: settings[name] for name in FILTERS if settings.get(name) is not None},
            )
            asked.append(Request(ids, sampling, number, ends))
            stops.append(until)
        written: list[list[int]] = [[] for _ in asked]
        told, done = self._told("writing"), 0
        for piece in engine.stream(asked):
            written[piece.row].append(piece.token)
            done += bool(piece.end)
            if told is not None and piece.end:
                told(done, len(asked))
        return [
            postprocess_generated_text(subject.tokenizer.decode(ids), until, None)
            for ids, until in zip(written, stops, strict=True)
        ]

    def _told(self, what: str) -> Any:
        return None if self.progress is None else partial(self.progress, what)
