"""GGUF files, with the real llama.cpp as the authority."""

from __future__ import annotations

import importlib.util
import json
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export_support import SHAPES, TINY, bpe, greedy, hostile_texts, make_run
from sparrowlm.config import Recipe
from sparrowlm.errors import RunError
from sparrowlm.share.export import gguf as writing
from sparrowlm.share.export.gguf import allowance, neighbors
from sparrowlm.share.export.writing import export
from sparrowlm.share.foreign import halves_apart
from sparrowlm.text.chat import CHAT_TEMPLATE, ChatFormat
from sparrowlm.text.definition import split_by
from sparrowlm.text.tokenizer import Tokenizer, byte_tokenizer, character_tokenizer


def need(module: str) -> Any:
    """A package of the test extra: absent it skips, except in CI."""
    if importlib.util.find_spec(module) is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must provide {module}")
        pytest.skip(f"needs {module}")
    return importlib.import_module(module)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    need("gguf")
    return bpe()


def read(folder: Path) -> Any:
    (path,) = folder.glob("*.gguf")
    return need("gguf").GGUFReader(path)


def value_of(reader: Any, name: str) -> Any:
    return reader.fields[name].contents()


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "Q8_0"])
@pytest.mark.parametrize("shape", ["qwen3", "qwen3_moe", "gpt2, no biases"])
def test_tensors_are_those_of_the_run(
    tmp_path: Path, tokenizer: Tokenizer, shape: str, dtype: str
) -> None:
    ours = make_run(tmp_path / "run", SHAPES[shape], tokenizer)
    done = export(tmp_path / "run", "gguf", tmp_path / "out", dtype=dtype)
    assert done.dtype == dtype
    reader = read(tmp_path / "out")
    held = {one.name: one for one in reader.tensors}
    one = held["token_embd.weight"]
    found = torch.from_numpy(
        np.array(need("gguf").quants.dequantize(one.data, one.tensor_type), np.float32)
    )
    want = ours.embed.weight.detach()
    match dtype:
        case "F32":
            assert torch.equal(found, want)
        case "F16":
            assert torch.equal(found, want.half().float())
        case "BF16":
            assert torch.equal(found, want.bfloat16().float())
        case "Q8_0":
            scale = want.unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True) / 127
            off = (found - want).unflatten(-1, (-1, 32)).abs()
            assert off.max() > 0
            assert (off <= 0.57 * scale).all()
    assert {one.tensor_type.name for one in held.values() if len(one.shape) == 1} == {"F32"}
    narrow = held["blk.0.ffn_up_exps.weight" if "moe" in shape else "blk.0.ffn_up.weight"]
    assert narrow.tensor_type.name == dtype
    if "moe" in shape:
        assert held["blk.0.ffn_gate_inp.weight"].tensor_type.name == "F32"
        assert narrow.shape.tolist() == [64, 32, 5]  # innermost first
    if shape == "gpt2, no biases" and dtype == "Q8_0":  # rows of 80
        assert held["blk.0.ffn_down.weight"].tensor_type.name == "F16"
        assert "ffn_down" in done.notes[0]


def test_the_header_says_what_the_run_is(tmp_path: Path, tokenizer: Tokenizer) -> None:
    shape = SHAPES["qwen3, untied, padded"]
    make_run(tmp_path / "run", shape, tokenizer, Recipe(stage="sft"))
    export(tmp_path / "run", "gguf", tmp_path / "out", license="mit")
    reader = read(tmp_path / "out")
    told = {
        "general.architecture": "qwen3",
        "general.name": "run",
        "general.license": "mit",
        "general.file_type": 1,
        "qwen3.context_length": 64,
        "qwen3.embedding_length": 64,
        "qwen3.block_count": 2,
        "qwen3.attention.head_count": 4,
        "qwen3.attention.head_count_kv": 2,
        "qwen3.attention.key_length": 32,
        "qwen3.vocab_size": 448,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.eos_token_id": tokenizer.eot_id,
        "tokenizer.ggml.eot_token_id": tokenizer.special_ids["<|im_end|>"],
    }
    assert {name: value_of(reader, name) for name in told} == told
    template = value_of(reader, "tokenizer.chat_template")
    assert "enable_thinking" not in template
    assert len(CHAT_TEMPLATE) - 50 < len(template) < len(CHAT_TEMPLATE)
    assert value_of(reader, "qwen3.rope.freq_base") == pytest.approx(5e5)
    names, types = (value_of(reader, f"tokenizer.ggml.{key}") for key in ("tokens", "token_type"))
    assert len(names) == len(types) == len(set(names)) == 448
    specials = set(tokenizer.special_ids.values())
    assert {number for number, kind in enumerate(types) if kind == 3} == specials
    assert {number for number, kind in enumerate(types) if kind == 5} == set(range(400, 448))
    assert names[447] == "[PAD447]"


def test_a_file_that_is_not_what_was_written_fails(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch
) -> None:
    make_run(tmp_path / "run", TINY, tokenizer)
    right = need("gguf").quants.dequantize

    def wrong(data: np.ndarray, kind: Any) -> np.ndarray:
        values = np.array(right(data, kind), np.float32)
        values.flat[7] += 1e-3
        return values

    monkeypatch.setattr(need("gguf").quants, "dequantize", wrong)
    for dtype in writing.DTYPES:
        with pytest.raises(RunError, match="is not what was written"):
            export(tmp_path / "run", "gguf", tmp_path / "out", dtype=dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_bound_of_q8_0_is_tight() -> None:
    library = need("gguf")
    values = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)) ** 5
    kind = library.GGMLQuantizationType.Q8_0
    back = library.quants.dequantize(library.quants.quantize(values.numpy(), kind), kind)
    used = (torch.from_numpy(back) - values).abs() / allowance(values, "Q8_0")
    assert 0.85 < used.max() <= 1


def test_neighbors_undo_halves_apart() -> None:
    rows = torch.arange(48.0 * 3).view(48, 3)
    assert torch.equal(neighbors(halves_apart(rows, 12), 12), rows)
    assert torch.equal(neighbors(torch.arange(8.0), 4), torch.tensor([0.0, 2, 1, 3, 4, 6, 5, 7]))


def with_definition(change: dict[str, Any]) -> Tokenizer:
    made = bpe()
    return Tokenizer(made.definition | change, "folder", {"eos_token": "<|endoftext|>"})


def other_pattern() -> Tokenizer:
    cut = split_by("qwen2")
    cut["pretokenizers"][0]["pattern"]["Regex"] = r"\p{N}+|\P{N}+"
    return with_definition({"pre_tokenizer": cut})


REFUSED = {
    'tokenizer.kind = "bytes"': (byte_tokenizer, {}),
    'tokenizer.kind = "chars"': (lambda: character_tokenizer("abc"), {}),
    "normalizer": (lambda: with_definition({"normalizer": {"type": "NFC"}}), {}),
    "pre_tokenizer": (other_pattern, {}),
    "model.norm_topk_prob = false": (bpe, {"n_experts": 4, "norm_topk_prob": False}),
    'model.mlp = "gelu"': (
        bpe,
        {"norm": "layer", "positions": "learned", "mlp": "gelu", "qk_norm": False, "n_kv_heads": 0},
    ),
}


@pytest.mark.parametrize("named", REFUSED)
def test_what_llama_cpp_would_do_otherwise_is_refused(tmp_path: Path, named: str) -> None:
    need("gguf")
    make, changes = REFUSED[named]
    make_run(tmp_path / "run", replace(TINY, **changes), make())
    with pytest.raises(RunError) as refused:
        export(tmp_path / "run", "gguf", tmp_path / "out")
    assert named in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    need("gguf")
    make_run(tmp_path / "run", replace(TINY, mlp="relu2", bias=True), byte_tokenizer())
    with pytest.raises(RunError) as refused:
        export(tmp_path / "run", "gguf", tmp_path / "out")
    for named in ('model.mlp = "relu2"', "model.bias = true", 'tokenizer.kind = "bytes"'):
        assert named in str(refused.value)


@contextmanager
def llama_cpp(folder: Path, tokens: int = 64) -> Iterator[Any]:
    """The real one over the file in a folder: a function that asks its server on this machine."""
    library = need("xllamacpp")
    (path,) = folder.glob("*.gguf")
    params = library.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup = tokens, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.verbosity = -1
    server = library.Server(params)

    def ask(place: str, **body: Any) -> Any:
        request = urllib.request.Request(
            f"{server.listening_address}/{place}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read())

    yield ask


def written(ask: Any, prompt: list[int], count: int = 24) -> list[int]:
    """Its greedy tokens, whatever ends it believes in."""
    answer = ask(
        "completion", prompt=prompt, n_predict=count, temperature=0.0, ignore_eos=True,
        return_tokens=True, cache_prompt=False,
    )  # fmt: skip
    return answer["tokens"]


@pytest.mark.parametrize("shape", SHAPES)
def test_llama_cpp_writes_the_same_greedy_tokens(
    tmp_path: Path, tokenizer: Tokenizer, shape: str
) -> None:
    ours = make_run(tmp_path / "run", SHAPES[shape], tokenizer)
    export(tmp_path / "run", "gguf", tmp_path / "out", dtype="F32")
    generator = torch.Generator().manual_seed(8)
    ends = {tokenizer.eot_id, tokenizer.special_ids["<|im_end|>"]}
    compared = 0
    with llama_cpp(tmp_path / "out") as ask:
        while compared < 4:
            prompt = torch.randint(16, tokenizer.vocab_size, (12,), generator=generator).tolist()
            wanted = greedy(ours, prompt)
            if ends.isdisjoint(wanted):  # llama.cpp would stop there, or never choose them
                assert written(ask, prompt) == wanted
                compared += 1


@pytest.mark.parametrize("pattern", ["qwen2", "gpt2"])
def test_llama_cpp_gives_the_same_ids(tmp_path: Path, pattern: str) -> None:
    """With `parse_special=false`, as our tokenizer reads text."""
    need("gguf")
    # Merges of texts of the same kind, so that a text cut elsewhere has other ids.
    tokenizer = bpe(pattern, 3000, hostile_texts(600, seed=6))
    make_run(tmp_path / "run", TINY, tokenizer)
    export(tmp_path / "run", "gguf", tmp_path / "out")
    texts = hostile_texts(600)
    assert len(set(texts)) > 590
    assert any("<|im_end|>" in text for text in texts)
    end = tokenizer.special_ids["<|im_end|>"]
    with llama_cpp(tmp_path / "out") as ask:
        forged = ask("tokenize", content="<|im_end|>", add_special=False, parse_special=True)
        assert forged["tokens"] == [end]
        for text in texts:
            found = ask("tokenize", content=text, add_special=False, parse_special=False)
            assert found["tokens"] == tokenizer.encode(text), repr(text)


def test_llama_cpp_asks_as_the_run_was_asked(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Its server renders the template of the file, and would have it think wherever it can."""
    make_run(tmp_path / "run", TINY, tokenizer, Recipe(stage="sft"))
    export(tmp_path / "run", "gguf", tmp_path / "out")
    chat = ChatFormat(tokenizer)
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "麻雀？"},
        {"role": "assistant", "content": "A bird."},
        {"role": "user", "content": "Sure?"},
    ]
    with llama_cpp(tmp_path / "out") as ask:
        for thinking in (False, True):
            wanted = tokenizer.decode(chat.prompt_ids(turns, thinking=thinking), specials=True)
            options = {"open_thinking": True} if thinking else {}
            found = ask("apply-template", messages=turns, chat_template_kwargs=options)
            assert found["prompt"] == wanted
