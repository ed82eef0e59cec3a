"""Engines against the reference: `tokenizers`, `transformers` and tiktoken give the same ids."""

from __future__ import annotations

import argparse
import inspect
import json
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from sparrowlm.config import TokenizerConfig
from sparrowlm.text import encoders, fast
from sparrowlm.text.chat import CHAT_TEMPLATE
from sparrowlm.text.definition import (
    BYTE_TO_CHARACTER,
    PATTERNS,
    SPECIALS,
    Definition,
    define,
    split_by,
)
from sparrowlm.text.encoders import SAMPLE, ReferenceEncoder, choose_encoder
from sparrowlm.text.fast import TiktokenEncoder, ranks_of, safe_chunks
from sparrowlm.text.tokenizer import (
    byte_tokenizer,
    character_tokenizer,
    load_tokenizer,
    train_tokenizer,
)

QUICK = settings(max_examples=60, deadline=None)
# What patterns and engines could disagree about.
HOSTILE = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.sampled_from([*SPECIALS, *"'sStTmMlLdDſ", "'ll", "'RE", " ", "  ", "\n", "\r\n", "\t"]),
        st.sampled_from(["\u00a0", "\u3000", "\u2028", "\u0085", "\u001c", "\u200d", "e\u0301"]),
        st.sampled_from(["麻雀虽小", "12345", "²½٣", "def f(x):", "...", "\U0001f469\u200d", "\0"]),
    ),
    max_size=12,
).map("".join)
MEGABYTE = 1_000_000


class Saved:
    """A vocabulary as files, as a value, as anyone else reads it, and as tiktoken's."""

    def __init__(self, folder: Path, pattern: str) -> None:
        self.folder, self.pattern = folder, pattern
        self.definition: Definition = json.loads((folder / "tokenizer.json").read_text("utf-8"))
        self.raw = published(folder)
        self.tokenizer = load_tokenizer(folder)
        self.reference = ReferenceEncoder(self.definition)
        self.fast = tiktoken_encoder(self.definition, PATTERNS[pattern])

    @cached_property
    def gigatoken(self) -> encoders.GigatokenEncoder:
        return encoders.GigatokenEncoder(self.definition)

    def __repr__(self) -> str:
        return f"a vocabulary cut by {self.pattern}"  # hypothesis prints it


@pytest.fixture(scope="module", params=["qwen2", "gpt2"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A trained vocabulary of either pattern."""
    texts = [inspect.getsource(json), inspect.getsource(argparse), *[SAMPLE] * 3]
    folder = tmp_path_factory.mktemp(request.param)
    config = TokenizerConfig(vocab_size=900, pattern=request.param)
    train_tokenizer(texts, config).save(folder)
    return Saved(folder, request.param)


def published(folder: Path) -> Any:
    """The file as anyone else reads it, literal specials in a text excepted."""
    raw = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    raw.encode_special_tokens = True
    return raw


def tiktoken_encoder(definition: Definition, pattern: str) -> TiktokenEncoder:
    table = ranks_of(definition, ReferenceEncoder(definition).raw)
    assert table is not None
    return TiktokenEncoder(pattern, *table)


@QUICK
@given(texts=st.lists(HOSTILE, max_size=4))
def test_ids_against_tokenizers(saved: Saved, texts: list[str]) -> None:
    expected = [saved.raw.encode(text, add_special_tokens=False).ids for text in texts]
    for encoder in (saved.reference, saved.fast):
        assert [ids.tolist() for ids in encoder.encode_batch(texts, 2)] == expected


@QUICK
@given(texts=st.lists(HOSTILE, max_size=4))
def test_gigatoken_ids_against_tokenizers(saved: Saved, texts: list[str]) -> None:
    pytest.importorskip("gigatoken", reason="the optional extra `fast` is not installed")
    expected = [saved.raw.encode(text, add_special_tokens=False).ids for text in texts]
    found = saved.gigatoken.encode_batch(texts, 2)
    assert [ids.tolist() for ids in found] == expected


def test_ids_against_tokenizers_on_real_text(saved: Saved, shared_data: Path) -> None:
    texts = [
        (shared_data / "wizard_of_oz.txt").read_text(encoding="utf-8"),
        inspect.getsource(tiktoken.core),
    ]
    expected = [ids.tolist() for ids in saved.reference.encode_batch(texts, 2)]
    chosen = load_tokenizer(saved.folder).encode_batch(texts)
    assert [ids.tolist() for ids in chosen] == expected
    assert [ids.tolist() for ids in saved.fast.encode_batch(texts, 2)] == expected


@pytest.mark.parametrize("name", ["minimind-3", "gpt2"])
def test_other_vocabularies_are_fast_with_the_same_ids(shared_data: Path, name: str) -> None:
    tokenizer = load_tokenizer(shared_data / "tokenizers" / name)
    assert tokenizer.engine != "tokenizers"
    assert tokenizer.notes == []
    if name == "minimind-3":
        text = (shared_data / "wizard_of_oz.txt").read_text(encoding="utf-8")[:60_000]
        raw = published(shared_data / "tokenizers" / name)
        assert tokenizer.encode(text) == raw.encode(text, add_special_tokens=False).ids


def test_gpt2_ids_against_tiktoken(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shared_data / "tokenizers" / "gpt2"
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
    authority = tiktoken.get_encoding("gpt2")
    tokenizer = load_tokenizer(folder)
    text = (shared_data / "wizard_of_oz.txt").read_text(encoding="utf-8")
    for sample in (text, SAMPLE, "<|endoftext|>", " \n\n x  "):
        assert tokenizer.encode(sample) == authority.encode_ordinary(sample)
    assert tokenizer.eot_id == authority.eot_token
    assert all(
        tokenizer.token_bytes(id) == authority.decode_single_token_bytes(id)
        for id in range(0, 50256, 7)
    )


def test_transformers_reads_what_is_saved(
    saved: Saved, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    found = transformers.AutoTokenizer.from_pretrained(str(saved.folder))
    tokenizer = load_tokenizer(saved.folder)
    assert len(found) == tokenizer.vocab_size
    assert (found.eos_token_id, found.pad_token_id, found.bos_token_id) == (0, 0, None)
    assert found("<|im_start|><think>", add_special_tokens=False).input_ids == [1, 3]
    for text in (SAMPLE, "<|im_start|>", "  two  spaces ,  and n't "):
        ids = tokenizer.encode(text)
        encoded = found(text, add_special_tokens=False, split_special_tokens=True)
        assert encoded.input_ids == ids
        assert found.decode(ids) == text
    turn = [{"role": "user", "content": "hi"}]
    shown = found.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert shown == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    found.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).encode(SAMPLE) == tokenizer.encode(SAMPLE)


@pytest.mark.parametrize("kind", ["bytes", "chars", "gpt2"])
def test_transformers_reads_the_other_kinds(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    if kind == "gpt2":
        shared_data = request.getfixturevalue("shared_data")
        tokenizer = load_tokenizer(shared_data / "tokenizers" / "gpt2")
    else:
        tokenizer = byte_tokenizer() if kind == "bytes" else character_tokenizer(sorted("ab 麻\n"))
    tokenizer.save(tmp_path)
    found = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert len(found) == tokenizer.vocab_size
    assert found.eos_token_id == tokenizer.eot_id
    text = "ab  麻\n ba"
    assert found(text, add_special_tokens=False).input_ids == tokenizer.encode(text)
    assert found.decode(tokenizer.encode(text)) == text


CHATS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]},
    {
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "\nyo", "reasoning_content": "\nhm\n"},
            {"role": "user", "content": "and?"},
        ],
        "add_generation_prompt": True,
    },
    {
        "messages": [
            {"role": "user", "content": "weather"},
            {
                "role": "assistant",
                "content": "<think>\nlook\n</think>\n\nwait",
                "tool_calls": [
                    {"function": {"name": "f", "arguments": {"city": "北京"}}},
                    {"name": "g", "arguments": "{}"},
                ],
            },
            {"role": "tool", "content": "sunny"},
            {"role": "tool", "content": "warm"},
            {"role": "assistant", "content": "nice"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    },
    {
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "x"}],
        "tools": [{"name": "f"}],
        "add_generation_prompt": True,
        "open_thinking": True,
    },
]


@pytest.mark.parametrize("chat", CHATS)
def test_chat_template_against_minimind(shared_data: Path, chat: dict[str, Any]) -> None:
    jinja2 = pytest.importorskip("jinja2")
    theirs = load_tokenizer(shared_data / "tokenizers" / "minimind-3").chat_template
    assert theirs is not None
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    ours, reference = (environment.from_string(text) for text in (CHAT_TEMPLATE, theirs))
    assert ours.render(**chat) == reference.render(**chat)


# Long and odd texts.


ONE_THING = {
    "letters": "a" * MEGABYTE,
    "spaces": " " * MEGABYTE,
    "spaces and a letter": " " * MEGABYTE + "x",
    "lines": "\n" * MEGABYTE,
    "chinese": "麻" * (MEGABYTE // 3),
    "marks": "=" * MEGABYTE,
    "mixed": " \n" * (MEGABYTE // 5) + "\t" * 600_000 + "x",
}


@pytest.mark.parametrize("saved", ["qwen2"], indirect=True)
@pytest.mark.parametrize("name", ONE_THING)
def test_a_megabyte_of_one_thing_takes_less_than_a_second(saved: Saved, name: str) -> None:
    """Of processor time, so that a busy machine does not fail it."""
    text = ONE_THING[name]
    began = time.process_time()
    (ids,) = saved.fast.encode_batch([text], 1)
    spent = time.process_time() - began
    assert spent < 1
    assert saved.tokenizer.decode_bytes(ids.tolist()) == text.encode()


@settings(max_examples=100, deadline=None)
@given(
    parts=st.lists(st.sampled_from([" " * 9, "\n" * 9, " \n" * 5, "\t", "a", ".", "\r\n", "麻"]))
)
def test_long_runs_have_the_ids_of_tokenizers(saved: Saved, parts: list[str]) -> None:
    text = "".join(parts)
    (expected,) = saved.reference.encode_batch([text], 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast, "LONGEST_RUN", 8)
        assert np.array_equal(saved.fast.encode_batch([text], 1)[0], expected)


BITS = ["a", "\n", "\n", " ", "\r", ".", "'s", "1", "\t", "麻"]


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.sampled_from(BITS), max_size=60))
def test_cutting_a_long_text_changes_no_id(saved: Saved, parts: list[str]) -> None:
    text = "".join(parts)
    whole = saved.fast.encode_batch([text], 1)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast, "CHUNK", 1)
        assert "".join(safe_chunks(text)) == text
        assert np.array_equal(saved.fast.encode_batch(["x", text], 2)[1], whole)


# Which engine is used.


class Wrong:
    """An engine that is wrong by one."""

    name = "tiktoken"

    def __init__(self, *_: object) -> None:
        pass

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[np.ndarray]:
        return [np.zeros(len(text), np.uint32) for text in texts]


def test_an_engine_that_differs_is_turned_down_aloud(
    saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "FAST", {"tiktoken": Wrong})
    tokenizer = load_tokenizer(saved.folder)
    text = "as it was"
    expected = saved.raw.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text) == expected
    assert tokenizer.engine == "tokenizers"
    assert tokenizer.notes == [
        "tiktoken gives other ids than tokenizers on a sample; tokenizers is used"
    ]


def test_an_engine_that_fails_is_turned_down_aloud(
    saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(definition: Definition, known: ReferenceEncoder) -> Any:
        raise ValueError("no such pattern")

    monkeypatch.setattr(encoders, "FAST", {"numpy": broken, "tiktoken": encoders.FAST["tiktoken"]})
    encoder, note = choose_encoder(saved.definition, "bpe", ["some text"])
    assert encoder.name == "tiktoken"
    assert note == "numpy cannot use this vocabulary (no such pattern); tiktoken is used"


def by_hand(merges: Sequence[tuple[str, str]], ids: Sequence[int] | None = None) -> Definition:
    """A vocabulary of bytes and some merges, ids given or in order."""
    pieces = [*BYTE_TO_CHARACTER, *(left + right for left, right in merges)]
    numbers = range(len(pieces)) if ids is None else ids
    vocab = dict(zip(pieces, numbers, strict=True))
    return define(vocab, merges=merges, pre_tokenizer=split_by("qwen2"))


def test_merges_that_tiktoken_would_do_otherwise_are_found() -> None:
    """ "abc" comes from a+bc, but a+b comes first: `tokenizers` never makes it, tiktoken does."""
    odd = by_hand([("a", "b"), ("b", "c"), ("a", "bc")])
    reference = ReferenceEncoder(odd)
    assert ranks_of(odd, reference.raw) is None
    assert choose_encoder(odd, "bpe", [])[0].name != "tiktoken"
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256, b"bc": 257, b"abc": 258}
    naive = TiktokenEncoder(PATTERNS["qwen2"], ranks, np.arange(259, dtype=np.uint32))
    assert reference.encode_batch(["abc"], 1)[0].tolist() == [256, ord("c")]
    assert naive.encode_batch(["abc"], 1)[0].tolist() == [258]
    twice = by_hand([("a", "b"), ("b", "c"), ("ab", "c")])
    assert ranks_of(twice, ReferenceEncoder(twice).raw) is not None


def test_ids_need_not_follow_the_order_of_merges() -> None:
    merges = [("a", "b"), ("ab", "c"), ("d", "e")]
    shuffled = np.random.default_rng(1).permutation(259).tolist()
    definition = by_hand(merges, shuffled)
    encoder = tiktoken_encoder(definition, PATTERNS["qwen2"])
    expected = ReferenceEncoder(definition).encode_batch(["abcde deab"], 1)
    assert np.array_equal(encoder.encode_batch(["abcde deab"], 1)[0], expected[0])


def test_a_vocabulary_without_all_bytes_is_left_to_the_reference() -> None:
    definition = by_hand([])
    del definition["model"]["vocab"]["a"]
    assert ranks_of(definition, ReferenceEncoder(definition).raw) is None


@pytest.mark.slow
def test_patterns_cut_every_character_alike_in_both_engines() -> None:
    """`tokenizers` (Oniguruma) and tiktoken (fancy-regex), every code point in use, in context."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    for byte in range(256):
        for near in b"a1! \n":
            for pair in (bytes([near, byte]), bytes([byte, near])):
                ranks.setdefault(pair, len(ranks))
    whole = tiktoken.Encoding("whole", pat_str=r"[\s\S]+", mergeable_ranks=ranks, special_tokens={})
    planes = [
        *range(0xD800),
        *range(0xE000, 0x34000),
        *range(0xE0000, 0xE0200),
    ]  # the rest is empty
    points = list(map(chr, planes))
    for pattern in PATTERNS.values():
        other = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
        for start in range(0, len(points), 1 << 14):
            text = "\n1".join(map(" {0} !{0}1a{0}a".format, points[start : start + (1 << 14)]))
            pieces = [piece for piece, _ in split.pre_tokenize_str(text)]
            expected = [id for piece in pieces for id in whole.encode_ordinary(piece)]
            assert other.encode_ordinary(text) == expected
