"""The engine against passes without a cache, and its ends against a scripted decoder."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from sparrowlm.config import ModelConfig
from sparrowlm.errors import ConfigError, RunError, UserError
from sparrowlm.infer.engine import Engine, Piece, Request
from sparrowlm.infer.sampling import Sampling
from sparrowlm.model.cache import KVCache
from sparrowlm.model.transformer import Output, Transformer
from sparrowlm.runtime import Runtime
from sparrowlm.text.tokenizer import Tokenizer, byte_tokenizer, character_tokenizer
from writing_support import Script, random_model, write_without_cache

CPU = Runtime(torch.device("cpu"), "float32")
EXACT = Runtime(torch.device("cpu"), "float64")
BYTES = byte_tokenizer()
GREEDY = Sampling(temperature=0.0, max_tokens=40)
SMALL = ModelConfig(vocab_size=257, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, max_seq_len=16)


def _ids(pieces: list[Piece], row: int = 0) -> list[int]:
    return [piece.token for piece in pieces if piece.row == row]


def _text(pieces: list[Piece], row: int = 0) -> str:
    return "".join(piece.text for piece in pieces if piece.row == row)


def _scripted(text: bytes | list[int], tokenizer: Tokenizer | None = BYTES, **options) -> Engine:
    """An engine whose model writes `text`, then zeros, after a prompt of one token."""
    config = replace(SMALL, max_seq_len=64)
    engine = Engine(random_model(config), tokenizer, CPU, **options)
    engine.decoder = Script(config, [*text, *[0] * 64])  # pyright: ignore[reportAttributeAccessIssue]
    return engine


def _write(engine: Engine, **settings) -> list[Piece]:
    sampling = Sampling(**{"temperature": 0.0, "max_tokens": 60, **settings})
    return list(engine.stream([Request([0], sampling)]))


def test_greedy_tokens_equal_full_recomputation_in_float32_on_a_trained_model(
    trained: Transformer, source: bytes
) -> None:
    engine = Engine(trained, BYTES, CPU)
    prompts = [list(source[at : at + 8 + at % 17]) for at in range(500, 20_000, 3000)]
    pieces = list(engine.stream([Request(prompt, GREEDY) for prompt in prompts]))
    for row, prompt in enumerate(prompts):
        assert _ids(pieces, row) == write_without_cache(trained, prompt, GREEDY, 257)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_a_gpu_writes_as_full_recomputation_does(trained: Transformer, precision: str) -> None:
    """Of rows that join, slide and end; in bf16 only that it writes to the end."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    runtime = Runtime(torch.device("cuda", 0), precision)
    model = copy.deepcopy(trained).to(runtime.device, runtime.weight_dtype)
    sampling = Sampling(temperature=0.9, top_k=30, max_tokens=90)
    requests = [Request(list(b"import re"[: 3 + n]), sampling, sample=n) for n in range(5)]
    pieces = list(Engine(model, None, runtime, slots=3).stream(requests))
    for row, (prompt, _, sample, *_) in enumerate(requests):
        assert len(_ids(pieces, row)) == 90
        if precision == "float64":
            expected = write_without_cache(model, list(prompt), sampling, 264, sample)
            assert _ids(pieces, row) == expected


@pytest.mark.parametrize("slots", [1, 2, 3, 8])
def test_rows_do_not_depend_on_the_batch_around_them(slots: int) -> None:
    """Different prompts, settings and lengths: rows join, end and move while others go on."""
    model = random_model(SMALL)
    requests = [
        Request([1, 2, 3], Sampling(max_tokens=5)),
        Request([4], Sampling(temperature=0.0, max_tokens=9)),
        Request([1, 2, 3], Sampling(top_k=20, max_tokens=12), sample=1),
        Request(list(range(16)), Sampling(top_p=0.9, max_tokens=3)),
        Request([1, 2, 3], Sampling(repetition_penalty=1.5, max_tokens=40), sample=2),
        Request([9, 8], Sampling(min_p=0.05, max_tokens=1)),
        Request([7, 7, 7, 7], Sampling(temperature=2.0, seed=5, max_tokens=20)),
    ]
    engine = Engine(model, BYTES, EXACT, slots=slots)
    engine.eot_id = None
    pieces = list(engine.stream(requests))
    for row, request in enumerate(requests):
        prompt, sampling, sample = request[:3]
        expected = write_without_cache(model, list(prompt), sampling, 257, sample)
        assert _ids(pieces, row) == expected
        assert [piece.end for piece in pieces if piece.row == row][-1] == "max_tokens"


def test_a_caller_may_append_to_its_prompt_as_it_reads() -> None:
    model = random_model(SMALL)
    prompt = [3, 1]
    for piece in Engine(model, None, EXACT).stream([Request(prompt, GREEDY)]):
        prompt.append(piece.token)
    assert prompt[2:] == write_without_cache(model, [3, 1], GREEDY, 257)


def test_samples_of_one_prompt_differ_and_repeat_with_the_seed(trained: Transformer) -> None:
    engine = Engine(trained, BYTES, CPU)
    requests = [Request(list(b"def "), Sampling(max_tokens=20), sample=n) for n in range(4)]
    first = list(engine.stream(requests))
    assert len({tuple(_ids(first, row)) for row in range(4)}) == 4
    assert list(engine.stream(requests)) == first
    again = [one._replace(sampling=replace(one.sampling, seed=7)) for one in requests]
    assert _ids(list(engine.stream(again))) != _ids(first)


def test_one_prompt_is_read_once_for_all_its_samples(trained: Transformer) -> None:
    engine = Engine(trained, BYTES, CPU)
    decoder, reads = engine.decoder, []

    class Counting:
        """The decoder, with every call on record."""

        config, device, dtype = decoder.config, decoder.device, decoder.dtype
        logits = staticmethod(decoder.logits)

        def __call__(self, tokens: torch.Tensor, cache: KVCache) -> Output:
            reads.append(tuple(tokens.shape))
            return decoder(tokens, cache)

    engine.decoder = Counting()  # pyright: ignore[reportAttributeAccessIssue]
    requests = [Request(list(b"def f"), Sampling(max_tokens=3), sample=n) for n in range(5)]
    list(engine.stream(requests))
    assert reads == [(1, 4), (5, 1), (5, 1), (5, 1)]


def test_a_full_context_slides_as_recomputation_does() -> None:
    model = random_model(SMALL)
    sampling = Sampling(max_tokens=50)
    pieces = list(Engine(model, None, EXACT).stream([Request([3, 1], sampling)]))
    assert _ids(pieces) == write_without_cache(model, [3, 1], sampling, 257)


@pytest.mark.parametrize("length", [1, 7, 16])
def test_without_sliding_a_full_context_ends(length: int) -> None:
    model = random_model(SMALL)
    engine = Engine(model, None, EXACT, slide=False)
    pieces = list(engine.stream([Request([5] * length, Sampling(max_tokens=50))]))
    assert pieces[-1].end == "context"
    assert len(pieces) == 16 - length + 1  # the last token needs no room


def test_nothing_outlives_a_piece(trained: Transformer) -> None:
    """Between pieces gradients are on and the model is as it was: it may go on training."""
    trained.train()
    for _ in Engine(trained, BYTES, CPU).stream([Request([40], GREEDY)]):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert trained.training
    trained.eval()


def test_spare_rows_of_the_table_are_never_drawn(trained: Transformer) -> None:
    engine = Engine(trained, BYTES, CPU)
    sampling = Sampling(temperature=100.0, max_tokens=60)
    drawn = list(engine.stream([Request([65], sampling, sample=n) for n in range(8)]))
    assert max(piece.token for piece in drawn) < 257


def test_end_of_text_ends_and_says_nothing() -> None:
    pieces = _write(_scripted([*b"done", 256, *b"more"]))
    assert _text(pieces) == "done"
    assert pieces[-1] == Piece(0, 256, "", "end_of_text")


def test_max_tokens_are_exact() -> None:
    pieces = _write(_scripted(b"0123456789"), max_tokens=4)
    assert (_text(pieces), pieces[-1].end, len(pieces)) == ("0123", "max_tokens", 4)


@pytest.mark.parametrize(
    ("stop", "shown"),
    [(("END",), "one E two EN three "), (("two", "one E two EN"), "one E "), (("zzz",), None)],
)
def test_a_stop_string_across_tokens_is_not_shown(stop: tuple[str, ...], shown: str | None) -> None:
    text = "one E two EN three END four"
    pieces = _write(_scripted(text.encode()), stop=stop, max_tokens=len(text))
    assert _text(pieces) == (text if shown is None else shown)
    assert pieces[-1].end == ("max_tokens" if shown is None else "stop")
    so_far = ""
    for piece in pieces:
        so_far += piece.text
        assert text.startswith(so_far)


def test_what_might_have_been_a_stop_is_shown_at_the_end() -> None:
    assert _text(_write(_scripted([*b"a STO", 256]), stop=("STOP",))) == "a STO"
    assert _text(_write(_scripted(b"a STO"), stop=("STOP",), max_tokens=5)) == "a STO"


def test_characters_are_shown_whole() -> None:
    text = "麻雀🐦é"
    pieces = _write(_scripted([*text.encode(), 256]))
    assert [piece.text for piece in pieces if piece.text] == list(text)


def test_broken_bytes_are_shown_as_replacements_and_an_unfinished_end_is_not() -> None:
    assert _text(_write(_scripted([*b"a\xffb\xe9", 256]))) == "a�b�"
    assert _text(_write(_scripted("a麻".encode()), max_tokens=3)) == "a"


def test_a_prompt_that_ends_inside_a_character_is_completed() -> None:
    """As a story that is continued from its ids."""
    first, *rest = "麻".encode()
    engine = _scripted([*rest, *b"!"])
    prompt = Request([first], Sampling(temperature=0.0, max_tokens=3))
    assert _text(list(engine.stream([prompt]))) == "麻!"


def test_prompts_of_every_kind_of_tokenizer(trained: Transformer) -> None:
    assert Engine(trained, BYTES, CPU).prompt("hé") == [104, 195, 169]
    assert Engine(trained, BYTES, CPU).prompt("") == [256]
    assert Engine(trained, character_tokenizer("\nab"), CPU).prompt("") == [0]
    assert Engine(trained, character_tokenizer("ab\n"), CPU).prompt("") == [2]
    assert Engine(trained, character_tokenizer("ab"), CPU).prompt("") == [0]
    assert Engine(trained, None, CPU).prompt("") == [0]
    with pytest.raises(ConfigError, match="without a tokenizer"):
        Engine(trained, None, CPU).prompt("text")


def test_without_a_tokenizer_there_are_ids_and_no_text(trained: Transformer) -> None:
    pieces = list(Engine(trained, None, CPU).stream([Request([1], GREEDY)]))
    assert len(pieces) == 40
    assert _text(pieces) == ""


def test_text_is_the_whole_completion(trained: Transformer) -> None:
    engine = Engine(trained, BYTES, CPU)
    pieces = list(engine.stream([Request(list(b"import"), GREEDY)]))
    assert engine.text("import", GREEDY) == _text(pieces) != ""


def test_no_request_writes_nothing(trained: Transformer) -> None:
    assert list(Engine(trained, BYTES, CPU).stream([])) == []


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request([], GREEDY), "no tokens"),
        (Request([1] * 65, GREEDY), r"65 tokens.* 64"),
        (Request([257], GREEDY), "outside the 257"),
        (Request([-1], GREEDY), "outside the 257"),
    ],
)
def test_an_impossible_prompt_is_named(
    trained: Transformer, request_: Request, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        list(Engine(trained, BYTES, CPU).stream([request_]))


def test_stop_strings_without_a_tokenizer_are_an_error(trained: Transformer) -> None:
    with pytest.raises(ConfigError, match="stop"):
        list(Engine(trained, None, CPU).stream([Request([1], Sampling(stop=("a",)))]))


def test_weights_that_are_not_numbers_are_named() -> None:
    model = random_model(SMALL)
    with torch.no_grad():
        model.blocks[0].mlp.up.weight[0, 0] = torch.nan  # pyright: ignore
    with pytest.raises(RunError, match="not numbers"):
        list(Engine(model, BYTES, EXACT).stream([Request([1], GREEDY)]))
