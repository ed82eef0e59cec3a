"""The decoder with a cache against the Transformer without one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparrowlm.config import ModelConfig
from sparrowlm.errors import UserError
from sparrowlm.infer.decoder import Decoder
from sparrowlm.model.cache import KVCache
from sparrowlm.model.transformer import Transformer
from sparrowlm.train.compiler import compile_fault
from writing_support import full_logits, random_model

QWEN3 = ModelConfig(
    vocab_size=97, d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=12, max_seq_len=24
)
GPT2 = replace(
    QWEN3, norm="layer", positions="learned", mlp="gelu_tanh", qk_norm=False, bias=True,
    head_dim=8, n_kv_heads=4,
)  # fmt: skip
SHAPES = {
    "qwen3": QWEN3,
    "llama": replace(QWEN3, qk_norm=False, tie_embeddings=False, rope_theta=5e5),
    "gpt2": GPT2,
    "gpt2 without biases": replace(GPT2, bias=False, mlp="gelu"),
    "relu2, one key head": replace(QWEN3, mlp="relu2", n_kv_heads=1),
    "reglu, biases": replace(QWEN3, mlp="reglu", bias=True),
    "relu, learned positions, normed heads": replace(QWEN3, mlp="relu", positions="learned"),
    "layer norm, rotary, large epsilon": replace(QWEN3, norm="layer", bias=True, norm_eps=0.1),
    "rms norm, large epsilon": replace(QWEN3, norm_eps=0.1),
    "a bias in the head": replace(GPT2, tie_embeddings=False, head_bias=True),
    "experts": replace(QWEN3, n_experts=5, d_ff=24),
    "experts, layer norm, relu2": replace(QWEN3, norm="layer", n_experts=3, mlp="relu2"),
}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def model(request: pytest.FixtureRequest) -> Transformer:
    return random_model(request.param)


def _cache(decoder: Decoder, slots: int = 1) -> KVCache:
    return KVCache(decoder.config, slots, decoder.config.max_seq_len, dtype=decoder.dtype)


@torch.no_grad()
def test_cached_logits_equal_full_recomputation_to_1e_10_in_float64(model: Transformer) -> None:
    """Prompt and tokens one by one, to the end of the context, by decoder and by model."""
    ids = torch.randint(97, (2, 24), generator=torch.Generator().manual_seed(1))
    full = torch.stack([full_logits(model, row) for row in ids.tolist()])
    assert full.abs().max() > 0.5
    decoder = Decoder(model)
    for reader in (decoder, lambda tokens, cache: model(tokens, cache=cache)):
        cache = _cache(decoder, slots=2)
        hidden = [reader(ids[:, :9], cache).hidden]
        hidden += [reader(ids[:, at : at + 1], cache).hidden for at in range(9, 24)]
        found = decoder.logits(torch.cat(hidden, dim=1))
        assert (found - full).abs().max() < 1e-10


@torch.no_grad()
def test_sequences_of_different_lengths_decode_together(model: Transformer) -> None:
    ids = torch.randint(97, (3, 24), generator=torch.Generator().manual_seed(2)).tolist()
    decoder = Decoder(model)
    cache = _cache(decoder, slots=3)
    lengths = (5, 1, 13)
    for slot, length in enumerate(lengths):
        decoder(torch.tensor([ids[slot][:length]]), cache.rows(slot, slot + 1))
    for step in range(4):
        last = torch.tensor([[ids[slot][length + step]] for slot, length in enumerate(lengths)])
        found = decoder.logits(decoder(last, cache).hidden[:, -1])
        for slot, length in enumerate(lengths):
            full = full_logits(model, ids[slot][: length + step + 1])[-1]
            assert (found[slot] - full).abs().max() < 1e-10


@torch.no_grad()
def test_padding_leaves_no_trace() -> None:
    model = random_model(QWEN3)
    decoder = Decoder(model)
    cache = _cache(decoder, slots=2)
    decoder(torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]]), cache, counts=[4, 2])
    found = decoder.logits(decoder(torch.tensor([[7], [8]]), cache).hidden[:, -1])
    for row, ids in enumerate(([1, 2, 3, 4, 7], [5, 6, 8])):
        assert (found[row] - full_logits(model, ids)[-1]).abs().max() < 1e-10


@torch.no_grad()
def test_bf16_products_stay_near_float32(trained: Transformer, source: bytes) -> None:
    ids = list(source[1000:1064])
    full = full_logits(trained, ids).log_softmax(-1)
    decoder = Decoder(trained, torch.bfloat16)
    cache = _cache(decoder)
    found = decoder.logits(decoder(torch.tensor([ids]), cache).hidden)[0]
    assert found.dtype == cache.keys[0].dtype == torch.bfloat16
    divergence = (full.exp() * (full - found.float().log_softmax(-1))).sum(-1)
    assert divergence.mean() < 1e-3


@torch.no_grad()
def test_int8_weights_write_as_their_rounded_values_do(trained: Transformer) -> None:
    """One row goes through the kernel of 8 bits, many through an ordinary product of the same
    values: what is left between them is the rounding of bfloat16."""
    decoder = Decoder(trained, torch.bfloat16, weights="int8")
    product = decoder.layers[0].qkv
    assert product.whole is not None  # or this test would compare a thing with itself
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    few = torch.cat([product(row[None]) for row in x]).float()
    many = product(x).float()
    assert many.abs().max() > 0
    assert (few - many).abs().max() < 0.02 * many.abs().max()
    exact = Decoder(trained, torch.bfloat16).layers[0].qkv(x).float()
    assert 0 < (exact - many).abs().max() < 0.03 * many.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_weights_stay_near_float32(
    trained: Transformer, source: bytes, dtype: torch.dtype
) -> None:
    ids = list(source[1000:1064])
    full = full_logits(trained, ids).log_softmax(-1)
    decoder = Decoder(trained, dtype, weights="int8")
    cache = _cache(decoder)
    steps = [decoder(torch.tensor([[id]]), cache).hidden for id in ids]
    found = decoder.logits(torch.cat(steps, 1))[0]
    divergence = (full.exp() * (full - found.float().log_softmax(-1))).sum(-1)
    assert 0 < divergence.mean() < 3e-3


def test_more_positions_than_the_model_has_are_an_error() -> None:
    decoder = Decoder(random_model(QWEN3))
    cache = KVCache(decoder.config, 1, max_len=30, dtype=torch.float64)
    with pytest.raises(UserError, match=r"25 positions .* 24"):
        decoder(torch.zeros(1, 25, dtype=torch.int64), cache)


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_step_equals_full_recomputation() -> None:
    if compile_fault(torch.device("cpu")):
        pytest.skip("needs a C++ compiler")
    model = random_model(QWEN3)
    decoder = Decoder(model, compile=True)
    cache = _cache(decoder)
    ids = list(range(20))
    decoder(torch.tensor([ids[:5]]), cache)
    found = [decoder.logits(decoder(torch.tensor([[id]]), cache).hidden[:, -1]) for id in ids[5:]]
    assert (torch.cat(found) - full_logits(model, ids)[5:]).abs().max() < 1e-10
