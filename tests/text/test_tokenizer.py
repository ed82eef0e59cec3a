"""Vocabularies: what they are made of, what they write, and the laws they keep."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from sparrowlm.config import TokenizerConfig
from sparrowlm.errors import TokenizerError
from sparrowlm.text import training
from sparrowlm.text.definition import BYTE_TO_CHARACTER, CHARACTER_TO_BYTE, PATTERNS, SPECIALS
from sparrowlm.text.encoders import SAMPLE
from sparrowlm.text.foreign import GPT2_FILES
from sparrowlm.text.measure import all_bytes_text, longest, measure, missing_bytes
from sparrowlm.text.stream import TextStream
from sparrowlm.text.tokenizer import (
    Tokenizer,
    byte_tokenizer,
    character_tokenizer,
    load_tokenizer,
    make_tokenizer,
    train_tokenizer,
)

QUICK = settings(max_examples=50, deadline=None)
SMALL = TokenizerConfig(vocab_size=900)


def corpus() -> list[str]:
    """Code and some Chinese that every machine has."""
    return [inspect.getsource(json), inspect.getsource(argparse), *[SAMPLE] * 3]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_tokenizer(corpus(), SMALL)


@pytest.fixture(scope="module")
def minimind(shared_data: Path) -> Tokenizer:
    return load_tokenizer(shared_data / "tokenizers" / "minimind-3")


@pytest.fixture(scope="module")
def gpt2(shared_data: Path) -> Tokenizer:
    return load_tokenizer(shared_data / "tokenizers" / "gpt2")


# What a vocabulary is made of.


def test_ids_are_specials_then_bytes_then_merges(trained: Tokenizer) -> None:
    assert trained.vocab_size == 900
    assert trained.special_ids == {name: number for number, name in enumerate(SPECIALS)}
    assert len(SPECIALS) == 16
    assert trained.eot_id == 0
    assert {trained.token_bytes(id) for id in range(16, 272)} == {bytes([b]) for b in range(256)}
    assert all(trained.token_bytes(id) == b"" for id in range(16))
    assert min(trained.byte_lengths()[272:]) >= 2
    assert trained.byte_lengths().dtype == np.int32


@pytest.mark.parametrize("pattern", ["qwen2", "gpt2"])
def test_training_against_tokenizers(pattern: str) -> None:
    """Long documents are cut on the way to the trainer, and it makes no difference."""
    raw = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(PATTERNS[pattern]), "isolated")
    spell = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, spell])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=list(SPECIALS),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(corpus(), trainer)
    found = train_tokenizer(corpus(), TokenizerConfig(vocab_size=900, pattern=pattern))
    content = {
        bytes(map(CHARACTER_TO_BYTE.__getitem__, piece)): id
        for piece, id in raw.get_vocab().items()
        if id >= len(SPECIALS)
    }
    assert {found.token_bytes(id): id for id in range(16, found.vocab_size)} == content


def test_training_is_the_same_for_any_number_of_threads(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import argparse, inspect\n"
        "from sparrowlm.config import TokenizerConfig\n"
        "from sparrowlm.text.tokenizer import train_tokenizer\n"
        "texts = inspect.getsource(argparse).split('\\n')\n"
        "print(train_tokenizer(texts, TokenizerConfig(vocab_size=2000)).fingerprint)\n",
        encoding="utf-8",
    )
    seen = set()
    for threads, parallel in (("1", "true"), ("4", "true"), ("2", "false")):
        environment = {"RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": parallel}
        run = subprocess.run(
            [sys.executable, str(script)],
            env={**os.environ, **environment, "PYTHONHASHSEED": threads},
            capture_output=True,
            text=True,
            check=True,
        )
        seen.add(run.stdout.strip())
    assert len(seen) == 1


def test_a_small_text_says_that_it_fills_no_large_vocabulary() -> None:
    found = train_tokenizer(["some words, some more words"], TokenizerConfig(vocab_size=5000))
    assert found.vocab_size < 5000
    assert any("of 5000 entries" in note for note in found.notes)


def test_vocabulary_sizes_and_texts_that_cannot_be() -> None:
    with pytest.raises(TokenizerError, match="take 272"):
        train_tokenizer(["text"], TokenizerConfig(vocab_size=271))
    for texts in ([], [""], ["x"]):
        with pytest.raises(TokenizerError, match="no pair"):
            train_tokenizer(texts, TokenizerConfig(vocab_size=300))
    with pytest.raises(TokenizerError, match="no text"):
        train_tokenizer([], TokenizerConfig(kind="chars"))


def test_progress_counts_characters() -> None:
    seen: list[int] = []
    train_tokenizer(corpus(), SMALL, seen.append)
    assert seen[-1] == sum(map(len, corpus()))


# The character budget.


def test_under_the_budget_every_character_is_seen() -> None:
    texts = ["a" * 100_000 + "\n", "", "b\n" * 50_000, "c" * 10]
    assert "".join(training.thin(texts, 1_000_000)) == "".join(texts)


@pytest.mark.parametrize("length", [100, 2_000_000])
def test_the_budget_is_spread_evenly_over_the_input(length: int) -> None:
    """Every tenth of the input gives about a tenth of what is kept, head and tail alike."""
    line = 20
    total = 4_000_000
    documents = ("".join(f"{n:019}\n" for n in range(at // line, (at + length) // line))
                 for at in range(0, total, length))  # fmt: skip
    kept = "".join(training.thin(documents, 1_000_000))
    assert 450_000 <= len(kept) <= 1_000_000
    shares = np.histogram([int(n) for n in kept.split()], bins=10, range=(0, total // line))[0]
    assert shares.min() > 0.8 * shares.mean()
    assert shares.max() < 1.2 * shares.mean()


def test_the_budget_bounds_what_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "BLOCK_CHARACTERS", 64)
    texts = [f"line {n}\n" * 3 for n in range(5000)]
    kept = list(training.thin(texts, 10_000))
    assert 5_000 <= sum(map(len, kept)) <= 10_000
    assert {line for text in kept for line in text.split()} <= set("".join(texts).split())


# Text to ids and back.


@QUICK
@given(st.text())
def test_text_comes_back(text: str) -> None:
    for tokenizer in (byte_tokenizer(), character_tokenizer(sorted(set(text)) or ["x"])):
        ids = tokenizer.encode(text)
        assert tokenizer.decode_bytes(ids) == text.encode()
        assert tokenizer.decode(ids) == text


@QUICK
@given(texts=st.lists(st.text(max_size=40), max_size=4))
def test_text_comes_back_from_bpe(trained: Tokenizer, texts: list[str]) -> None:
    batch = trained.encode_batch(texts)
    assert [ids.dtype for ids in batch] == [np.uint32] * len(texts)
    assert [trained.decode_bytes(ids) for ids in batch] == [text.encode() for text in texts]
    assert [trained.encode(text) for text in texts] == [ids.tolist() for ids in batch]


@pytest.mark.parametrize("kind", ["trained", "gpt2", "minimind", "bytes"])
def test_every_byte_can_be_written(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer = byte_tokenizer() if kind == "bytes" else request.getfixturevalue(kind)
    assert missing_bytes(tokenizer) == []
    assert measure(tokenizer, [all_bytes_text()]).exact
    single = {tokenizer.token_bytes(id): id for id in range(tokenizer.vocab_size)}
    ids = [single[bytes([byte])] for byte in range(256)]
    assert tokenizer.decode_bytes(ids) == bytes(range(256))
    assert tokenizer.decode(ids) == bytes(range(256)).decode(errors="replace")


@pytest.mark.parametrize("kind", ["trained", "gpt2", "minimind", "bytes"])
def test_text_never_becomes_a_special_id(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer = byte_tokenizer() if kind == "bytes" else request.getfixturevalue(kind)
    names = [*tokenizer.special_ids, *SPECIALS]
    for text in (*names, " ".join(names), "".join(names), "x<|endoftext|>\n<think>"):
        ids = tokenizer.encode(text)
        assert not set(ids) & set(tokenizer.special_ids.values())
        assert tokenizer.decode(ids) == text


def test_specials_are_left_out_or_written_out(trained: Tokenizer) -> None:
    ids = [1, *trained.encode("hi"), 2, 0]
    assert trained.decode(ids) == "hi"
    assert trained.decode(ids, specials=True) == "<|im_start|>hi<|im_end|><|endoftext|>"


@QUICK
@given(data=st.data())
def test_a_stream_of_any_ids_reads_as_they_decode(trained: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, trained.vocab_size - 1)))
    stream = TextStream(trained.token_bytes)
    shown = [stream.push(id) for id in ids]
    assert "".join(shown) + stream.finish() == trained.decode(ids)
    assert stream.finish() == ""


@QUICK
@given(text=st.text(alphabet="a麻é😀", max_size=20))
def test_a_stream_of_bytes_never_shows_half_a_character(text: str) -> None:
    tokenizer = byte_tokenizer()
    stream = TextStream(tokenizer.token_bytes)
    shown = "".join(stream.push(id) for id in tokenizer.encode(text))
    assert shown == text
    assert stream.finish() == ""


def test_half_of_a_surrogate_pair_is_refused(trained: Tokenizer) -> None:
    for tokenizer in (trained, byte_tokenizer(), character_tokenizer("ab")):
        with pytest.raises(TokenizerError, match=r"character 1 .* surrogate"):
            tokenizer.encode("a\ud800b")


@pytest.mark.parametrize("id", [-1, 900, 10**9])
def test_ids_outside_the_vocabulary_are_refused(trained: Tokenizer, id: int) -> None:
    for decode in (trained.decode, trained.decode_bytes):
        with pytest.raises(TokenizerError, match=f"id {id} is outside"):
            decode([20, id, 30])
    with pytest.raises(TokenizerError, match=f"id {id} is outside"):
        trained.token_bytes(id)


# The other kinds.


def test_shakespeare_has_nanogpt_characters(shared_data: Path) -> None:
    text = (shared_data / "tinyshakespeare.txt").read_text(encoding="utf-8")
    found = make_tokenizer(TokenizerConfig(kind="chars"), lambda: [text[:500_000], text[500_000:]])
    assert found.vocab_size == 65
    assert found.eot_id is None
    assert found.special_ids == {}
    stoi = {character: number for number, character in enumerate(sorted(set(text)))}
    assert found.encode(text) == [stoi[character] for character in text]


def test_an_unknown_character_is_named() -> None:
    with pytest.raises(TokenizerError, match="no 'é', '麻'"):
        character_tokenizer("abc").encode("cab é 麻".replace(" ", ""))


def test_bytes_are_their_own_ids() -> None:
    tokenizer = make_tokenizer(TokenizerConfig(kind="bytes"), lambda: pytest.fail("not read"))
    assert (tokenizer.vocab_size, tokenizer.eot_id) == (257, 256)
    assert tokenizer.encode("é!") == [0xC3, 0xA9, 0x21]


def test_gpt2_files_under_all_their_names_are_one_vocabulary(
    shared_data: Path, gpt2: Tokenizer, tmp_path: Path
) -> None:
    source = shared_data / "tokenizers" / "gpt2"
    assert (gpt2.kind, gpt2.vocab_size, gpt2.eot_id) == ("gpt2", 50257, 50256)
    for number, names in enumerate(GPT2_FILES[:2]):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, original in zip(names, GPT2_FILES[2], strict=True):
            shutil.copyfile(source / original, folder / name)
        config = TokenizerConfig(kind="gpt2", path=str(folder))
        found = make_tokenizer(config, list)
        assert found.fingerprint == gpt2.fingerprint
    found.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.kind, again.fingerprint) == ("gpt2", gpt2.fingerprint)


# On the disk.


@pytest.mark.parametrize("kind", ["trained", "minimind", "bytes", "chars"])
def test_saved_and_loaded_is_the_same(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    match kind:
        case "bytes":
            tokenizer = byte_tokenizer()
        case "chars":
            tokenizer = character_tokenizer(["b", "\n", " ", "麻", "a"])
        case _:
            tokenizer = request.getfixturevalue(kind)
    tokenizer.save(tmp_path)
    found = load_tokenizer(tmp_path)
    assert found.fingerprint == tokenizer.fingerprint
    assert found.kind == tokenizer.kind
    assert found.special_ids == tokenizer.special_ids
    assert found.chat_template == tokenizer.chat_template
    text = "ab 麻\n" if kind == "chars" else SAMPLE
    assert found.encode(text) == tokenizer.encode(text)
    assert {path.name for path in tmp_path.iterdir()} == {
        "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
    }  # fmt: skip


def test_of_several_chat_templates_the_default_is_taken(trained: Tokenizer, tmp_path: Path) -> None:
    """Hermes-2-Pro and Command-R have others beside it, for tools and for retrieval."""
    trained.save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    named = [{"name": name, "template": f"of {name}"} for name in ("tool_use", "default")]
    path.write_text(json.dumps(config | {"chat_template": named}), encoding="utf-8")
    assert load_tokenizer(tmp_path).chat_template == "of default"
    for held, told in ((named[:1], "it has: tool_use"), ({"default": 1}, "none that can be read")):
        path.write_text(json.dumps(config | {"chat_template": held}), encoding="utf-8")
        with pytest.raises(TokenizerError, match=told) as fault:
            load_tokenizer(tmp_path)
        assert str(path) in fault.value.where


def test_fingerprints_tell_vocabularies_apart(trained: Tokenizer, tmp_path: Path) -> None:
    others = [
        train_tokenizer(corpus(), TokenizerConfig(vocab_size=901)),
        train_tokenizer(corpus(), TokenizerConfig(vocab_size=900, pattern="gpt2")),
        byte_tokenizer(),
        character_tokenizer("ab"),
        character_tokenizer("ba"),
    ]
    assert len({trained.fingerprint, *(other.fingerprint for other in others)}) == 6


def test_a_worker_process_gets_the_same_tokenizer(trained: Tokenizer) -> None:
    trained.encode("x")
    found = pickle.loads(pickle.dumps(trained))
    assert found.encode(SAMPLE) == trained.encode(SAMPLE)


def test_another_family_ends_documents_its_own_way(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace("<|endoftext|>", "</s>"), encoding="utf-8")
    assert load_tokenizer(tmp_path).eot_id == 0


def test_a_run_folder_will_do(trained: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    trained.save(tmp_path / "tokenizer")
    assert load_tokenizer(tmp_path).fingerprint == trained.fingerprint
    found = load_tokenizer(tmp_path / "tokenizer" / "tokenizer.json")
    assert found.fingerprint == trained.fingerprint


def sentencepiece_like(folder: Path) -> None:
    """Llama's form: spaces as ▁, one before the text, bytes for what is unknown."""
    models, decoders = tokenizers.models, tokenizers.decoders
    raw = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    normalizers = tokenizers.normalizers
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    raw.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500, special_tokens=names, show_progress=False
    )
    raw.train_from_iterator(inspect.getsource(json).split("\n"), trainer)
    content = json.loads(raw.to_str())
    content["added_tokens"] = content["added_tokens"][:3]
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"eos_token": {"content": "</s>"}}')


def test_a_sentencepiece_vocabulary_is_read(tmp_path: Path) -> None:
    sentencepiece_like(tmp_path)
    found = load_tokenizer(tmp_path)
    raw = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert (found.kind, found.engine, found.eot_id) == ("folder", "tokenizers", 2)
    assert not found.cuts_at_lines
    for text in ("def  decode(s):\n", " x", "麻雀 </s>"):
        ids = found.encode(text)
        assert found.decode(ids) == text
        assert not set(ids) & {1, 2}
        if "</s>" not in text:
            assert ids == raw.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "holds no tokenizer"),
        ({"tokenizer.json": "{"}, "cannot be read as JSON"),
        ({"tokenizer.json": "[]"}, "holds no vocabulary"),
        ({"tokenizer.json": '{"model": {"type": "BPE"}}'}, "holds no vocabulary"),
        ({"tokenizer.json": '{"model": {"type": "WordPiece", "vocab": {"a": 0}}}'}, "exact text"),
        ({"vocab.json": "{}", "merges.txt": "a b\n"}, "do not belong together"),
        ({"vocab.json": "{}", "merges.txt": "ab\n"}, "merges.txt:1: is not a pair"),
        (
            {
                "vocab.json": "{}",
                "merges.txt": "",
                "tokenizer_config.json": '{"tokenizer_class": "Qwen2Tokenizer"}',
            },
            "how text is cut",
        ),
    ],
)
def test_folders_that_are_no_tokenizer(tmp_path: Path, files: dict[str, str], told: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(TokenizerError, match=told):
        load_tokenizer(tmp_path)


def test_a_missing_folder_and_a_missing_path() -> None:
    with pytest.raises(TokenizerError, match="no such folder"):
        load_tokenizer("no/such/folder")
    for kind in ("gpt2", "folder"):
        with pytest.raises(TokenizerError, match="needs a folder"):
            make_tokenizer(TokenizerConfig(kind=kind), list)


# Measures.


def test_longest_tokens_and_bytes_per_token() -> None:
    tokenizer = byte_tokenizer()
    assert longest(tokenizer, 2) == [0, 1]
    found = measure(tokenizer, ["麻", "ab"])
    assert (found.bytes, found.tokens, found.bytes_per_token) == (5, 5, 1.0)
    assert found.exact
    assert not measure(tokenizer, ["a" * (1 << 20), "b"], limit=10).whole
    assert len(BYTE_TO_CHARACTER) == len(set(BYTE_TO_CHARACTER)) == 256
