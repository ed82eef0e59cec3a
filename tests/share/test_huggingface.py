"""Hugging Face folders, with transformers as the authority."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from foreign_support import minimind_weights
from sparrowlm.checkpoint import find_run
from sparrowlm.errors import SparrowError
from sparrowlm.infer.engine import Engine, Request
from sparrowlm.infer.sampling import Sampling
from sparrowlm.infer.scoring import logprobs
from sparrowlm.model.transformer import Transformer
from sparrowlm.share.adopt import adopt
from sparrowlm.share.asked import Asked
from sparrowlm.text.tokenizer import byte_tokenizer
from support import cpu

V = 97
COMMON = {
    "vocab_size": V,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
}
GPT2 = {"vocab_size": V, "n_positions": 64, "n_embd": 48, "n_layer": 3, "n_head": 6}


def random(model: nn.Module) -> nn.Module:
    """Every parameter away from where it starts, so that a swapped one shows."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.copy_(drawn + (parameter.ndim == 1 and parameter.std() == 0))
    return model.eval()


def llama(**settings: object) -> nn.Module:
    return random(transformers.LlamaForCausalLM(transformers.LlamaConfig(**COMMON | settings)))


def qwen3(**settings: object) -> nn.Module:
    shape = COMMON | {"head_dim": 16} | settings
    return random(transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**shape)))


def qwen3_moe(**settings: object) -> nn.Module:
    shape = COMMON | {
        "head_dim": 16,
        "moe_intermediate_size": 32,
        "num_experts": 5,
        "num_experts_per_tok": 2,
    }
    config = transformers.Qwen3MoeConfig(**shape | settings)
    return random(transformers.Qwen3MoeForCausalLM(config))


def gpt2(**settings: object) -> nn.Module:
    return random(transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2 | settings)))


@torch.no_grad()
def check(run: Path, theirs: nn.Module) -> None:
    """Logits and log-probabilities of tokens to 1e-5, and 24 greedy tokens."""
    folder, step = find_run(run)
    model = Transformer(folder.recipe().model).eval()
    model.load_state_dict(folder.load(step).model)
    ids = torch.randint(0, V, (2, 30), generator=torch.Generator().manual_seed(1))
    want = theirs(ids).logits
    assert want.std() > 0.3
    torch.testing.assert_close(model.logits(model(ids).hidden), want, atol=1e-5, rtol=1e-5)
    said = torch.stack([one.logprobs for one in logprobs(model, cpu(), ids.tolist())])
    nats = want[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(said, nats, atol=1e-5, rtol=1e-5)
    prompt = ids[:1, :9]
    written = theirs.generate(prompt, max_new_tokens=24, do_sample=False, eos_token_id=None)
    sampling = Sampling(temperature=0.0, max_tokens=24)
    pieces = Engine(model, None, cpu()).stream([Request(prompt[0].tolist(), sampling)])
    assert [piece.token for piece in pieces] == written[0, 9:].tolist()


CASES = {
    "llama": lambda: llama(),
    "llama, tied": lambda: llama(tie_word_embeddings=True),
    "llama, biases": lambda: llama(attention_bias=True, mlp_bias=True),
    "llama, biases in attention alone": lambda: llama(attention_bias=True),
    "llama, biases in the mlp alone": lambda: llama(mlp_bias=True, head_dim=10),
    "qwen3": lambda: qwen3(),
    "qwen3, tied": lambda: qwen3(tie_word_embeddings=True),
    "qwen3-moe": lambda: qwen3_moe(norm_topk_prob=True),
    "qwen3-moe, plain odds, tied": lambda: qwen3_moe(
        norm_topk_prob=False, tie_word_embeddings=True
    ),
    "gpt2": lambda: gpt2(),
    "gpt2, exact gelu, narrow mlp": lambda: gpt2(activation_function="gelu", n_inner=72),
}


@pytest.mark.parametrize("case", CASES)
def test_folders_against_transformers(tmp_path: Path, case: str) -> None:
    theirs = CASES[case]()
    theirs.save_pretrained(tmp_path / "folder")
    done = adopt(tmp_path / "folder", tmp_path / "run")
    assert done.project == "Hugging Face"
    check(tmp_path / "run", theirs)


def test_shards(tmp_path: Path) -> None:
    theirs = llama()
    theirs.save_pretrained(tmp_path / "folder", max_shard_size="60KB")
    assert len(list((tmp_path / "folder").glob("model-*.safetensors"))) > 2
    adopt(tmp_path / "folder", tmp_path / "run")
    check(tmp_path / "run", theirs)


@pytest.mark.parametrize("stacked", [True, False])
def test_experts_one_by_one_and_stacked(tmp_path: Path, stacked: bool) -> None:
    """Both ways in which releases of transformers have written them."""
    theirs = qwen3_moe()
    theirs.save_pretrained(tmp_path / "folder")
    (tmp_path / "folder" / "model.safetensors").unlink()
    state = theirs.state_dict()
    for layer in range(3 * (not stacked)):
        owner = f"model.layers.{layer}.mlp.experts"
        gates, ups = state.pop(f"{owner}.gate_up_proj").chunk(2, 1)
        downs = state.pop(f"{owner}.down_proj")
        for number in range(5):
            state[f"{owner}.{number}.gate_proj.weight"] = gates[number]
            state[f"{owner}.{number}.up_proj.weight"] = ups[number]
            state[f"{owner}.{number}.down_proj.weight"] = downs[number]
    torch.save(state, tmp_path / "folder" / "pytorch_model.bin")
    adopt(tmp_path / "folder", tmp_path / "run")
    check(tmp_path / "run", theirs)


@pytest.mark.parametrize("name", ["/etc/passwd", "../model.safetensors", "missing.safetensors"])
def test_an_index_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "folder" / "config.json").write_text(json.dumps({"model_type": "llama"} | COMMON))
    index = {"weight_map": {"model.norm.weight": name}}
    (tmp_path / "folder" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SparrowError, match="not beside it"):
        adopt(tmp_path / "folder", tmp_path / "run")


def test_a_pytorch_bin_and_the_older_spelling(tmp_path: Path) -> None:
    """`pytorch_model.bin`, GPT-2's names without their prefix, `rope_theta` beside the others."""
    theirs = qwen3(tie_word_embeddings=True)
    theirs.save_pretrained(tmp_path / "folder")
    (tmp_path / "folder" / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / "folder" / "pytorch_model.bin")
    path = tmp_path / "folder" / "config.json"
    values = json.loads(path.read_text())
    values["rope_theta"] = values.pop("rope_parameters")["rope_theta"]
    path.write_text(json.dumps(values | {"rope_scaling": None}))
    adopt(tmp_path / "folder", tmp_path / "run")
    check(tmp_path / "run", theirs)


def test_a_moe_without_head_dim_as_transformers_saves_it(tmp_path: Path) -> None:
    """Qwen3MoeConfig has no head_dim of its own, and shares the width out."""
    shape = COMMON | {"moe_intermediate_size": 32, "num_experts": 5, "num_experts_per_tok": 2}
    theirs = random(transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**shape)))
    theirs.save_pretrained(tmp_path / "folder")
    assert "head_dim" not in json.loads((tmp_path / "folder" / "config.json").read_text())
    done = adopt(tmp_path / "folder", tmp_path / "run")
    assert done.config.head_dim == 8
    check(tmp_path / "run", theirs)


@pytest.mark.parametrize("kind", ["safetensors", "bin", "shard"])
def test_a_file_of_a_folder_is_read_with_its_settings(tmp_path: Path, kind: str) -> None:
    theirs, folder = llama(), tmp_path / "folder"
    theirs.save_pretrained(folder, max_shard_size="60KB" if kind == "shard" else "1GB")
    byte_tokenizer().save(folder)
    path = folder / "model.safetensors"
    if kind == "shard":
        path = next(folder.glob("model-*.safetensors"))
    elif kind == "bin":
        path.unlink()
        path = folder / "pytorch_model.bin"
        torch.save(theirs.state_dict(), path)
    with pytest.raises(SparrowError, match="below the tokenizer's 257"):
        adopt(path, tmp_path / "run")
    (folder / "tokenizer.json").unlink()
    done = adopt(path, tmp_path / "run")
    assert done.project == "Hugging Face"
    assert any("the folder" in note for note in done.notes)
    check(tmp_path / "run", theirs)


def test_another_project_beside_a_config_is_read_as_itself(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    torch.save(minimind_weights(qk_norm=True, head_dim=6), tmp_path / "pretrain_768.pth")
    assert adopt(tmp_path / "pretrain_768.pth", tmp_path / "run").project == "minimind"


@pytest.mark.parametrize("tied", [True, False])
def test_a_base_model_has_no_head(tmp_path: Path, tied: bool) -> None:
    """As LlamaModel saves itself: names without their prefix."""
    theirs = llama(tie_word_embeddings=tied)
    theirs.model.save_pretrained(tmp_path / "folder")
    if tied:
        adopt(tmp_path / "folder", tmp_path / "run")
        check(tmp_path / "run", theirs)
        return
    with pytest.raises(SparrowError, match=r"head\.weight is missing"):
        adopt(tmp_path / "folder", tmp_path / "run")


def test_gpt2_without_its_prefix(tmp_path: Path) -> None:
    """As the published gpt2 has it, with the masks of old."""
    theirs = gpt2()
    theirs.save_pretrained(tmp_path / "folder")
    (tmp_path / "folder" / "model.safetensors").unlink()
    state = theirs.transformer.state_dict()
    state |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 64, 64).tril() for layer in range(3)}
    torch.save(state, tmp_path / "folder" / "pytorch_model.bin")
    adopt(tmp_path / "folder", tmp_path / "run")
    check(tmp_path / "run", theirs)


REFUSED = {
    "rope_type yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    "rope_type linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}},
    "sliding_window": {"use_sliding_window": True},
    "layer_types sliding_attention": {"layer_types": ["full_attention", "sliding_attention"]},
    "hidden_act gelu": {"hidden_act": "gelu"},
    "quantization_config": {"quantization_config": {"bits": 4}},
    "partial_rotary_factor": {"partial_rotary_factor": 0.5},
    "of type 'mamba'": {"model_type": "mamba"},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_expressed_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    values = {"model_type": "llama", "tie_word_embeddings": True} | COMMON | REFUSED[name]
    (tmp_path / "folder" / "config.json").write_text(json.dumps(values))
    with pytest.raises(SparrowError, match=name):
        adopt(tmp_path / "folder", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "setting", ["scale_attn_by_inverse_layer_idx", "add_cross_attention", "activation_function"]
)
def test_gpt2_settings_that_cannot_be_expressed(tmp_path: Path, setting: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text(
        json.dumps({"model_type": "gpt2", setting: "selu"} | GPT2)
    )
    with pytest.raises(SparrowError, match=setting):
        adopt(tmp_path / "folder", tmp_path / "run")


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": 0},
        {"num_attention_heads": "six"},
        {"num_hidden_layers": 10**9},
        {"vocab_size": 10**12},
        {"rms_norm_eps": "small"},
        {"rope_parameters": 3},
        {"layer_types": 3},
        {"hidden_size": None},
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, change: dict[str, object]) -> None:
    llama().save_pretrained(tmp_path / "folder")
    path = tmp_path / "folder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SparrowError):
        adopt(tmp_path / "folder", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_tells_its_own_shape(tmp_path: Path) -> None:
    gpt2().save_pretrained(tmp_path / "folder")
    with pytest.raises(SparrowError, match="--n-heads"):
        adopt(tmp_path / "folder", tmp_path / "run", Asked(n_heads=4))


def test_the_names_read_both_ways() -> None:
    from sparrowlm.share.huggingface import EXPERTS, LLAMA
    from sparrowlm.share.huggingface import GPT2 as gpt2_names

    for names in (LLAMA, EXPERTS, gpt2_names):
        assert len(set(names.values())) == len(names)
        assert all(ours.count("{}") == theirs.count("{}") for ours, theirs in names.items())
