"""Prompts answered by the engine, with calls of tools in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sparrowlm.infer.engine import End, Engine, Request
from sparrowlm.infer.sampling import Sampling
from sparrowlm.infer.tools import Toolbox
from sparrowlm.runtime import derived_seed
from sparrowlm.text.chat import END, ChatFormat, Part, parts_of, prompt_part
from sparrowlm.text.reply import CALL_CLOSES
from sparrowlm.text.tokenizer import Tokenizer


@dataclass
class Answer:
    """A completion, as far as it is written."""

    prompt: Sequence[int]
    sampling: Sampling
    ids: list[int] = field(default_factory=list)  # behind the prompt
    mask: list[bool] = field(default_factory=list)  # chosen by the policy, not put there by a tool
    end: End = ""
    calls: int = 0
    turn: int = 0  # where in `ids` the last turn of the policy begins

    @property
    def written(self) -> int:
        """How many ids the policy chose."""
        return sum(self.mask)


class Dialect:
    """How answers end and what stands between a tool's result and what follows it.

    Args:
        tokenizer: of the policy.
        chat: turns; otherwise plain text, in which a call ends with its closing tag.
        thinking: a turn begins with its reasoning, as the prompt does.
    """

    def __init__(self, tokenizer: Tokenizer, chat: bool, thinking: bool = False) -> None:
        self.tokenizer, self.thinking = tokenizer, thinking
        self.format = ChatFormat(tokenizer) if chat else None
        own = set() if tokenizer.eot_id is None else {tokenizer.eot_id}
        self.ends = frozenset(own if self.format is None else self.format.end_ids)

    def text(self, ids: Sequence[int]) -> str:
        """What a reward reads: special tokens written out, but for what ends an answer."""
        kept = [id for id in ids if id not in self.ends]
        return self.tokenizer.decode(kept, specials=True)

    @property
    def tells_results(self) -> bool:
        """Whether a tool's turn can be written: in plain text, and in ChatML."""
        return self.format is None or self.tokenizer.special_ids.get(END) in self.ends

    def result(self, result: str) -> list[int]:
        """A tool's turn, up to where the policy goes on."""
        if self.format is None:
            return self.tokenizer.encode(f"\n<tool_response>\n{result}\n</tool_response>\n")
        turn = parts_of([{"role": "tool", "content": result}])
        parts = [Part("\n", True), *turn, prompt_part(self.thinking)]
        return self.format.encode_parts([(parts, 1)])[0].ids.tolist()

    def request(self, answer: Answer, room: int, tools: bool) -> Request:
        """What the engine is asked next.

        Args:
            answer: so far.
            room: ids that prompt and completion may have together.
            tools: a call in plain text ends a request.
        """
        left = answer.sampling.max_tokens - answer.written
        space = room - len(answer.prompt) - len(answer.ids)
        stop = (CALL_CLOSES,) if tools and self.format is None else ()
        seed = derived_seed(answer.sampling.seed, answer.calls)
        sampling = replace(answer.sampling, max_tokens=min(left, space), stop=stop, seed=seed)
        return Request([*answer.prompt, *answer.ids], sampling, ends=self.ends)


def write(
    engine: Engine,
    dialect: Dialect,
    answers: Sequence[Answer],
    room: int,
    tools: Toolbox | None = None,
    max_calls: int = 0,
) -> None:
    """Write answers to their ends.

    Args:
        engine: of the policy as it is now; it does not slide.
        dialect: of the prompts.
        answers: changed in place.
        room: ids that prompt and completion may have together.
        tools: that may be called.
        max_calls: in one completion; a call beyond gets no result.
    """
    under_way = list(answers)
    while under_way:
        requests = [dialect.request(answer, room, tools is not None) for answer in under_way]
        for answer in under_way:
            answer.turn = len(answer.ids)
        for piece in engine.stream(requests):
            answer = under_way[piece.row]
            answer.ids.append(piece.token)
            answer.mask.append(True)
            answer.end = piece.end
        under_way = [one for one in under_way if _called(one, dialect, room, tools, max_calls)]


def _called(
    answer: Answer, dialect: Dialect, room: int, tools: Toolbox | None, max_calls: int
) -> bool:
    """Whether an answer made a call whose result is now behind it, with room to go on."""
    if tools is None or answer.end not in ("stop", "end_of_text") or answer.calls >= max_calls:
        return False
    result = tools.answer(dialect.text(answer.ids[answer.turn :]))
    if result is None:
        return False
    told = dialect.result(result)
    if len(answer.prompt) + len(answer.ids) + len(told) >= room:
        answer.end = "context"
        return False
    if answer.written >= answer.sampling.max_tokens:
        answer.end = "max_tokens"
        return False
    answer.ids += told
    answer.mask += [False] * len(told)
    answer.calls += 1
    return True
