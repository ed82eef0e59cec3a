"""Plain completions by the real client, on base models and others."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from server_support import Running, chat_tokenizer, tiny_model
from sparrowlm.infer.engine import Request
from sparrowlm.infer.sampling import Sampling
from writing_support import full_logits

PROMPT = "the sparrow 麻雀"
LISTS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


def folded(chunks: list[Any]) -> dict[int, tuple[str, str | None, list[Any]]]:
    found: dict[int, tuple[str, str | None, list[Any]]] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            text, _, likely = found.get(choice.index, ("", None, []))
            told = choice.logprobs
            rows = list(zip(*(getattr(told, name) for name in LISTS), strict=True)) if told else []
            found[choice.index] = (text + choice.text, choice.finish_reason, likely + rows)
    return found


@pytest.mark.parametrize("model", ["tiny", "base", "tuned"])
def test_a_completion_is_what_the_engine_writes_alone(
    server: Running, client: openai.OpenAI, model: str
) -> None:
    served = server.server.service.models[model]
    said = client.completions.create(
        model=model, prompt=[PROMPT, "a"], n=2, seed=3, temperature=1.4, max_tokens=25
    )
    sampling = Sampling(1.4, 50, seed=3, max_tokens=25)
    ends = frozenset() if served.chat is None else served.chat.end_ids
    asked = [
        Request(served.engine.prompt(text), sampling, sample, ends)
        for text in (PROMPT, "a")
        for sample in range(2)
    ]
    texts = [""] * 4
    for piece in served.engine.stream(asked):
        texts[piece.row] += piece.text
    assert [choice.text for choice in said.choices] == texts
    assert [choice.index for choice in said.choices] == [0, 1, 2, 3]
    assert said.usage is not None
    lengths = [len(served.engine.prompt(text)) for text in (PROMPT, "a")]
    assert said.usage.prompt_tokens == sum(lengths)  # each once, whatever n


@pytest.mark.parametrize("seed", range(3))
def test_text_and_counts_are_the_same_streamed_or_not(client: openai.OpenAI, seed: int) -> None:
    settings: dict[str, Any] = {
        "model": "base", "prompt": [PROMPT, "b"], "seed": seed, "n": 2, "temperature": 1.8,
        "max_tokens": 40, "logprobs": 3,
    }  # fmt: skip
    once = client.completions.create(**settings)
    chunks = list(
        client.completions.create(**settings, stream=True, stream_options={"include_usage": True})
    )
    assert folded(chunks) == folded([once])
    assert chunks[-1].usage == once.usage
    assert once.usage is not None
    rows = sum(len(rows) for _, _, rows in folded([once]).values())
    assert rows == once.usage.completion_tokens


def test_ids_are_a_prompt_as_well_as_text(client: openai.OpenAI) -> None:
    ids = chat_tokenizer().encode(PROMPT)
    one, other = (
        client.completions.create(model="base", prompt=prompt, seed=1, max_tokens=20)
        for prompt in (PROMPT, ids)
    )
    assert one.choices == other.choices
    several = client.completions.create(model="base", prompt=[ids, [1]], seed=1, max_tokens=20)
    assert several.choices[0] == one.choices[0]
    assert len(several.choices) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_echo_says_the_prompt_first(client: openai.OpenAI, stream: bool) -> None:
    settings: dict[str, Any] = {"model": "base", "prompt": PROMPT, "seed": 1, "max_tokens": 5}
    plain = client.completions.create(**settings).choices[0].text
    said = client.completions.create(**settings, echo=True, stream=stream)
    assert folded(list(said) if stream else [said])[0][0] == PROMPT + plain


def test_an_empty_prompt_begins_a_document(server: Running, client: openai.OpenAI) -> None:
    said = client.completions.create(model="base", prompt="", seed=1, max_tokens=5)
    assert said.usage is not None
    assert said.usage.prompt_tokens == 1


def test_logprobs_are_the_models_own(client: openai.OpenAI) -> None:
    tokenizer = chat_tokenizer()
    prompt = tokenizer.encode(PROMPT)
    said = client.completions.create(
        model="base", prompt=prompt, temperature=0, max_tokens=12, logprobs=2
    )
    told = said.choices[0].logprobs
    assert told is not None
    assert told.token_logprobs is not None
    table = full_logits(tiny_model("base"), prompt)[-1].double().log_softmax(-1)
    assert told.token_logprobs[0] == pytest.approx(table.max().item(), abs=1e-4)
    assert told.top_logprobs is not None
    assert list(told.top_logprobs[0].values()) == pytest.approx(
        table.topk(2).values.tolist(), abs=1e-4
    )
    assert told.text_offset is not None
    assert told.text_offset[0] == 0
    assert told.text_offset == sorted(told.text_offset)
    assert told.text_offset[-1] <= len(said.choices[0].text)


def test_no_line_separator_breaks_an_event(server: Running) -> None:
    """U+2028 and its like end a line for some readers of streams."""
    body = {"model": "base", "prompt": "\u2028\x85", "echo": True, "stream": True, "max_tokens": 1}
    with server.http() as http:
        answer = http.post("/v1/completions", json=body)
    assert answer.content.isascii()
    lines = [line for line in answer.text.splitlines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert json.loads(lines[0][6:])["choices"][0]["text"] == "\u2028\x85"
