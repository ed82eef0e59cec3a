"""Answers taken apart: any pieces give the same parts, and what the template writes comes back."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sparrowlm.config import TokenizerConfig
from sparrowlm.infer.completion import Completion, Request
from sparrowlm.infer.sampling import Sampling
from sparrowlm.text.chat import ChatFormat, parts_of
from sparrowlm.text.reply import (
    TAGS,
    Fragment,
    ReplyReader,
    ReplySplitter,
    parse_tool_call,
    tool_calls,
)
from sparrowlm.text.tokenizer import Tokenizer, make_tokenizer

QUICK = settings(max_examples=100, deadline=None)
HALVES = ("<thi", "nk>", "</", "think>", "<tool_", "call>", "</tool_call", "<", ">", "<<think>")
CALL = '{"name": "f", "arguments": {}}'
HOSTILE = st.lists(
    st.sampled_from([*TAGS, *HALVES, CALL, "\n", "\n\n", " ", "a", "麻雀", "\U0001f426"]),
    max_size=14,
).map("".join)
PLAIN = st.text("a麻 \n{}\"'\\", max_size=12)


def split(text: str, cuts: Sequence[int] = (), thinking: bool = False) -> list[Fragment]:
    """The fragments, neighbors of one kind joined."""
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    splitter = ReplySplitter(thinking=thinking)
    found = [
        part
        for first, last in itertools.pairwise(edges)
        for part in splitter.push(text[first:last])
    ]
    return joined(found + splitter.finish())


def joined(fragments: list[Fragment]) -> list[Fragment]:
    done: list[Fragment] = []
    for part in fragments:
        assert part.text, "an empty fragment"
        if done and part.kind == done[-1].kind != "tool_call":
            part = Fragment(part.kind, done.pop().text + part.text)
        done.append(part)
    return done


@QUICK
@given(HOSTILE, st.lists(st.integers(0, 80), max_size=40), st.booleans())
@example("<think>\nwhy\n</think>\n\nso\n<tool_call>\n{}\n</tool_call>", list(range(80)), False)
def test_any_pieces_give_the_same_parts(text: str, cuts: list[int], thinking: bool) -> None:
    whole = split(text, thinking=thinking)
    assert split(text, cuts, thinking) == whole
    assert split(text, list(range(len(text))), thinking) == whole


@QUICK
@given(HOSTILE, st.booleans())
def test_nothing_is_lost_but_tags_and_white_space(text: str, thinking: bool) -> None:
    found = split(text, thinking=thinking)
    assert bare("".join(part.text for part in found)) == bare(text)
    assert [part.kind for part in found].count("thinking") <= 1
    assert all(part.kind != "thinking" for part in found[1:])


def bare(text: str) -> str:
    """Without what may go; taking a tag out can make another."""
    while (less := re.sub("|".join([*TAGS, r"\s"]), "", text)) != text:
        text = less
    return text


def test_only_what_may_be_a_tag_waits() -> None:
    splitter = ReplySplitter(thinking=True)
    assert splitter.push("\n") == []
    assert splitter.push("why<") == [Fragment("thinking", "why")]
    assert splitter.push("b</thi") == [Fragment("thinking", "<b")]
    assert splitter.push("nk>\n\n") == []
    assert splitter.push("so\n") == [Fragment("content", "so")]
    assert splitter.push("<too") == []
    assert splitter.push("l") == []
    assert splitter.push("s>") == [Fragment("content", "\n<tools>")]


@QUICK
@given(PLAIN, PLAIN, st.lists(st.fixed_dictionaries({"a": PLAIN}), max_size=3))
def test_what_the_template_writes_comes_back(thought: str, content: str, calls: list[dict]) -> None:
    message = {
        "role": "assistant",
        "content": content,
        "reasoning_content": thought,
        "tool_calls": [{"name": "f", "arguments": one} for one in calls],
    }
    parts = list(parts_of([message]))
    prompt = "".join(part.text for part in parts if part.author < 0)
    said = "".join(part.text for part in parts if part.author >= 0).removesuffix("<|im_end|>")
    found = split(said, thinking=prompt.rstrip().endswith("<think>"))
    kinds = {"thinking": "", "content": ""}
    kinds |= {part.kind: part.text for part in found if part.kind != "tool_call"}
    assert kinds == {"thinking": thought.strip("\n"), "content": content.lstrip("\n")}
    called = [parse_tool_call(part.text) for part in found if part.kind == "tool_call"]
    assert [(name, json.loads(args)) for name, args in filter(None, called)] == [
        ("f", one) for one in calls
    ]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("\n\n", []),
        ("<think>\n\n</think>\n\nyes", [("content", "yes")]),
        ("a <think>b</think>", [("content", "a <think>b</think>")]),
        ("<think>a", [("thinking", "a")]),
        ("<think>a</thi", [("thinking", "a</thi")]),
        ("<thi", [("content", "<thi")]),
        ("a\n<tool_call>\n{", [("content", "a\n<tool_call>\n{")]),
        ("<tool_call>{}</tool_call>\n", [("tool_call", "{}")]),
        ("<think><tool_call>{}</tool_call></think>a", [
            ("thinking", "<tool_call>{}</tool_call>"), ("content", "a"),
        ]),
        ("<tool_call>1</tool_call>\n<tool_call>2</tool_call>b", [
            ("tool_call", "1"), ("tool_call", "2"), ("content", "b"),
        ]),
    ],
)  # fmt: skip
def test_parts_by_example(text: str, parts: list[tuple[str, str]]) -> None:
    assert split(text) == parts


def test_a_long_call_is_not_searched_again_and_again() -> None:
    splitter = ReplySplitter()
    assert splitter.push("<tool_call>") == []
    for _ in range(20_000):
        assert splitter.push("abcdefgh") == []
    assert splitter.push("</tool_call>") == [Fragment("tool_call", "abcdefgh" * 20_000)]


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ('{"name": "f", "arguments": {"a": "麻"}}', ("f", '{"a": "麻"}')),
        ('{"name": "f", "arguments": "{}"}', ("f", "{}")),
        ('{"name": "f"}', ("f", "{}")),
        ('{"name": "f", "arguments": NaN}', None),
        ('{"name": "", "arguments": {}}', None),
        ('{"name": 1}', None),
        ('{"name": "\\ud800"}', None),
        ("[1]", None),
        ("{", None),
        ("[" * 100_000, None),
    ],
)
def test_calls_are_read_or_refused(text: str, call: tuple[str, str] | None) -> None:
    assert parse_tool_call(text) == call


def test_calls_of_a_whole_text() -> None:
    assert tool_calls("a<tool_call>1</tool_call>b<tool_call>2</tool_call><tool_call>") == ["1", "2"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_tokenizer(TokenizerConfig(vocab_size=300), lambda: ["the sparrow is small. "])


def test_a_tag_stands_behind_what_may_have_begun_a_stop_string(tokenizer: Tokenizer) -> None:
    request = Request([1], Sampling(stop=("aab",)))
    completion = Completion(0, request, tokenizer, None, None)
    reader, found = ReplyReader(tokenizer, [1]), []
    call = [tokenizer.special_ids["<tool_call>"], *tokenizer.encode("{}aa")]
    for id in [*tokenizer.encode("aa"), *call, tokenizer.special_ids["</tool_call>"]]:
        piece = completion.take(id)
        found += reader.push(piece.token, piece.text)
    assert joined(found) == [("content", "aa"), ("tool_call", "{}aa")]


@pytest.mark.parametrize("thinking", [False, True])
def test_tags_that_are_special_tokens_are_seen(tokenizer: Tokenizer, thinking: bool) -> None:
    chat = ChatFormat(tokenizer)
    call = {"name": "f", "arguments": {}}
    answer = {"role": "assistant", "content": "so", "tool_calls": [call]}
    if thinking:
        answer["reasoning_content"] = "why"
    parts = list(parts_of([{"role": "user", "content": "?"}, answer]))
    written = chat.encode_parts([(parts, 0)])[0]
    first = int(written.mask.argmax())
    reader, found = ReplyReader(tokenizer, written.ids[:first].tolist()), []
    for id in written.ids[written.mask].tolist():
        found += reader.push(id, tokenizer.token_bytes(id).decode())
    expected = [("thinking", "why")] * thinking + [("content", "so"), ("tool_call", CALL)]
    assert joined(found + reader.finish()) == expected
