"""Low-rank changes: nothing at first, trained alone, and the same once merged."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sparrowlm.batch import Batch
from sparrowlm.config import LoraConfig, ModelConfig, OptimConfig, Recipe, check_lora, resolve_model
from sparrowlm.config.schema import LORA_TARGETS
from sparrowlm.errors import ConfigError, RunError
from sparrowlm.infer.decoder import Decoder
from sparrowlm.model.cache import KVCache
from sparrowlm.model.count import (
    count_parameters,
    flops_per_token,
    lora_parameters,
    training_memory,
)
from sparrowlm.model.dropout import dropout
from sparrowlm.model.lora import (
    LoraLinear,
    adapt,
    changes_of,
    full_weight,
    merge,
    trained_tensors,
)
from sparrowlm.model.transformer import Transformer
from sparrowlm.objectives.next_token import NextToken
from sparrowlm.optim import AdamW
from sparrowlm.optim.groups import build_optimizers, split_parameters
from support import EXPERTS, TINY

GPT2 = replace(
    TINY, n_kv_heads=2, norm="layer", positions="learned", mlp="gelu_tanh", qk_norm=False, bias=True
)
LORA = LoraConfig(rank=3, alpha=6.0)
TOKENS = torch.randint(0, 256, (4, 16), generator=torch.Generator().manual_seed(1))


def base(shape: ModelConfig = TINY, dtype: torch.dtype = torch.float32, **settings: bool):
    model = Transformer(resolve_model(shape), **settings)
    model.init_weights(seed=7)
    return model.to(dtype)


def stir(model: Transformer) -> Transformer:
    """Changes that do something."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("lora_b"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return model


def adapted(shape: ModelConfig = TINY, lora: LoraConfig = LORA, **settings):
    model = base(shape, **settings)
    adapt(model, lora, seed=7)
    return model


def logits(model: Transformer) -> Tensor:
    with torch.no_grad():
        return model.logits(model(TOKENS).hidden)


def loss(model: Transformer) -> Tensor:
    mask = torch.ones(TOKENS.shape, dtype=torch.bool)
    return NextToken()(model, Batch(TOKENS, TOKENS.roll(-1, 1), mask, None, {})).total / mask.sum()


@pytest.mark.parametrize("shape", [TINY, GPT2], ids=["qwen3", "gpt2"])
@pytest.mark.parametrize("autocast", [False, True])
def test_untrained_changes_leave_the_base_as_it_is_to_the_bit(shape, autocast):
    model = adapted(shape, replace(LORA, dropout=0.3))
    assert model.training
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        torch.testing.assert_close(logits(model), logits(base(shape)), rtol=0, atol=0)


def test_autocast_gives_a_layer_the_same_dtype_with_changes_and_without():
    model = stir(adapted())
    layer = model.blocks[0].attention.q
    with torch.autocast("cpu", torch.bfloat16):
        for one in (layer, base().blocks[0].attention.q):
            assert one(torch.randn(2, 32)).dtype == torch.bfloat16
        assert full_weight(layer).dtype == torch.float32


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_only_changes_get_gradients_and_move(optimizer):
    model = adapted()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizers = build_optimizers(model, OptimConfig(name=optimizer))
    optimizers.set_scale(1.0)
    for _ in range(2):  # in the first step A has no gradient yet, as B is zero
        loss(model).backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == name.endswith(("lora_a", "lora_b")), name
        optimizers.step()
        optimizers.zero_grad()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) != name.endswith(("lora_a", "lora_b")), name


def test_changes_alone_learn_a_batch():
    model = adapted(lora=LoraConfig(rank=8, alpha=16.0))
    optimizers = build_optimizers(model, OptimConfig(lr=3e-2))
    optimizers.set_scale(1.0)
    first = loss(model).item()
    for _ in range(40):
        loss(model).backward()
        optimizers.step()
        optimizers.zero_grad()
    assert loss(model).item() < first - 0.3  # of a random table that stays


def test_changes_are_in_one_group_and_stepped_by_adamw_under_muon_too():
    model = adapted()
    groups = split_parameters(model)
    assert set(groups["adapters"]) == {n for n, p in model.named_parameters() if p.requires_grad}
    assert [name for name, held in groups.items() if held] == ["adapters"]
    (only,) = build_optimizers(model, OptimConfig(name="muon", weight_decay=0.2)).rules
    assert isinstance(only, AdamW)
    assert [group.weight_decay for group in only.groups] == [0.2]


def test_all_seven_products_of_every_block_may_be_named():
    names = {name.rpartition(".")[0] for name in trained_tensors(adapted())}
    assert len(names) == 2 * 7
    assert {name.rpartition(".")[2] for name in names} == set(LORA_TARGETS)
    some = trained_tensors(adapted(lora=replace(LORA, targets=("k", "down"))))
    assert {name.split(".")[-2] for name in some} == {"k", "down"}


@pytest.mark.parametrize("shape", [TINY, GPT2], ids=["qwen3", "gpt2"])
def test_merged_equals_adapted(shape):
    model = stir(adapted(shape)).eval()
    plain = base(shape).eval()
    plain.load_state_dict(merge(plain.state_dict(), changes_of(trained_tensors(model), LORA.alpha)))
    assert (logits(model) - logits(base(shape))).abs().max() > 0.01
    torch.testing.assert_close(logits(plain), logits(model), rtol=0, atol=1e-6)


def test_merging_saved_changes_equals_what_each_layer_multiplies_by():
    model, plain = stir(adapted()), base()
    found = merge(plain.state_dict(), changes_of(trained_tensors(model), LORA.alpha))
    assert found.keys() == plain.state_dict().keys()
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear):
            assert torch.equal(found[f"{name}.weight"], full_weight(layer)), name


def test_a_merged_weight_against_float64():
    layer = stir(adapted()).blocks[1].mlp.down
    exact = layer.weight.double() + 2.0 * layer.lora_b.double() @ layer.lora_a.double()
    torch.testing.assert_close(full_weight(layer).double(), exact.detach(), rtol=0, atol=1e-7)


def test_dropout_is_on_what_goes_into_the_change_alone():
    model = stir(adapted(lora=replace(LORA, dropout=0.5)))
    layer, x = model.blocks[0].attention.v, torch.randn(5, 32)
    torch.manual_seed(3)
    dropped = dropout(x, 0.5, training=True)
    torch.manual_seed(3)
    want = layer.weight @ x.T + 2.0 * layer.lora_b @ layer.lora_a @ dropped.T
    torch.testing.assert_close(layer(x), want.T)
    torch.testing.assert_close(layer.eval()(x), x @ full_weight(layer).T)


def test_activation_checkpointing_changes_no_gradient():
    grads = []
    for spared in (False, True):
        model = stir(adapted(activation_checkpointing=spared)).train()
        loss(model).backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


@torch.no_grad()
def test_a_decoder_of_an_adapted_model_equals_its_full_pass():
    model = stir(adapted(dtype=torch.float64)).eval()
    decoder = Decoder(model)
    cache = KVCache(model.config, slots=4, max_len=16, dtype=decoder.dtype)
    steps = [decoder(TOKENS[:, at : at + 1], cache).hidden for at in range(16)]
    found = decoder.logits(torch.cat(steps, 1))
    torch.testing.assert_close(found, logits(model), rtol=0, atol=1e-10)


def test_the_same_seed_draws_the_same_changes_and_another_others():
    first, again = trained_tensors(adapted()), trained_tensors(adapted())
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = base()
    adapt(other, LORA, seed=8)
    name = "blocks.0.attention.q.lora_a"
    assert not torch.equal(trained_tensors(other)[name], first[name])
    assert first[name].abs().max() < 32**-0.5


def test_faults_are_told_together_and_name_the_near_miss():
    with pytest.raises(ConfigError) as fault:
        adapt(base(), LoraConfig(rank=-1, dropout=1.0, targets=("q", "gates")), seed=0)
    for told in ("lora.rank is -1", "lora.dropout 1.0", "did you mean gate?"):
        assert told in str(fault.value)


def test_stacked_experts_are_refused_and_their_attention_is_not():
    shape = replace(TINY, **EXPERTS)
    with pytest.raises(ConfigError, match="once for each expert"):
        adapt(base(shape), LORA, seed=0)
    model = base(shape)
    adapt(model, replace(LORA, targets=("q", "o")), seed=0)
    loss(stir(model)).backward()
    assert sum(p.grad is not None for p in model.parameters()) == 8


def test_a_model_without_a_gate_passes_it_over_unless_nothing_is_left():
    names = {name.split(".")[-2] for name in trained_tensors(adapted(GPT2))}
    assert names == set(LORA_TARGETS) - {"gate"}
    with pytest.raises(ConfigError, match="names no layer"):
        adapt(base(GPT2), replace(LORA, targets=("gate",)), seed=0)


def test_a_recipe_without_a_base_says_why():
    with pytest.raises(ConfigError, match=r"init\.from names no run") as fault:
        check_lora(Recipe(model=TINY, lora=LORA))
    assert "next to nothing" in str(fault.value)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t.pop("blocks.0.attention.q.lora_a"),
        lambda t: t.update({"blocks.0.attention.q.lora_b": torch.zeros(32, 9)}),
        lambda t: t.update({"blocks.9.attention.q.lora_a": torch.zeros(3, 32),
                            "blocks.9.attention.q.lora_b": torch.zeros(32, 3)}),
        lambda t: t.update({"blocks.0.attention.q.lora_a": torch.zeros(3, 31)}),
    ],
)  # fmt: skip
def test_changes_that_do_not_fit_are_refused(spoil):
    tensors = dict(trained_tensors(adapted()))
    spoil(tensors)
    with pytest.raises(RunError, match=r"attention\.q"):
        merge(base().state_dict(), changes_of(tensors, 6.0))


@pytest.mark.parametrize("targets", [LORA_TARGETS, ("q", "v"), ("o", "up")])
def test_counted_changes_are_the_models(targets):
    model = adapted(lora=replace(LORA, targets=targets))
    held = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert lora_parameters(resolve_model(TINY), replace(LORA, targets=targets)) == held
    plain = count_parameters(resolve_model(TINY)).total
    assert sum(p.numel() for p in model.parameters()) == plain + held


def test_memory_of_gradients_and_optimizer_is_of_the_changes_alone():
    shape = resolve_model(TINY)
    full = training_memory(shape, 4, 16, optimizer="adamw")
    for optimizer in ("adamw", "muon"):
        lean = training_memory(shape, 4, 16, optimizer=optimizer, lora=LORA)
        held = lora_parameters(shape, LORA)
        assert lean.optimizer == 2 * lean.gradients == 8 * held
        assert lean.weights == full.weights + 4 * held
        assert lean.head < full.head


def test_operations_against_torchs_counter():
    """But for the gradient of what enters the first block's q, k and v, which nobody asks for."""
    shape = resolve_model(replace(TINY, tie_embeddings=False))
    model = adapted(shape)
    with FlopCounterMode(display=False) as counter:
        model.logits(model(TOKENS).hidden).sum().backward()
    counted = counter.get_flop_counts()["Global"]
    products = sum(count for kind, count in counted.items() if kind == torch.ops.aten.mm)
    first = model.blocks[0].attention
    unasked = sum(
        2 * (layer.weight.numel() + layer.lora_a.numel()) for layer in (first.q, first.k, first.v)
    )
    attention = 6 * shape.n_layers * shape.n_heads * shape.head_dim * 16
    per_token = flops_per_token(shape, 16, LORA)
    assert products / TOKENS.numel() + unasked + attention == per_token


def test_adapting_twice_is_our_mistake():
    model = adapted()
    assert isinstance(model.blocks[0].attention.q, LoraLinear)
    with pytest.raises(RuntimeError, match="adapted already"):
        adapt(model, LORA, seed=0)
