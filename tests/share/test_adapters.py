"""Adapters in files, with PEFT as the authority; merging; one base and several adapters."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from lora_support import LORA, logits, lora_recipe, run, text_recipe
from sparrowlm.checkpoint import RunFolder, find_run
from sparrowlm.cli import main
from sparrowlm.config import InitConfig, LoraConfig
from sparrowlm.errors import RunError
from sparrowlm.model.lora import adapt
from sparrowlm.model.transformer import Transformer
from sparrowlm.pipeline import load_run
from sparrowlm.share.adapters import merge_run, read_adapter, with_adapter
from sparrowlm.share.huggingface import LLAMA, named_there
from sparrowlm.train.build import load_weights
from support import quick

SHAPES = {
    "qwen3": {},
    "llama": {"qk_norm": False, "tie_embeddings": False},
    "gpt2": {"norm": "layer", "mlp": "gelu", "qk_norm": False, "bias": True, "n_kv_heads": 2},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """`NAME` and `NAME-lora` for every shape, and a second adapter on the first."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        quick(patch, folder)
        for name, shape in SHAPES.items():
            recipe = text_recipe(folder, **shape)
            run(recipe, folder / name)
            _, told = run(lora_recipe(recipe, folder / name), folder / f"{name}-lora")
            assert bool(told) == (name == "gpt2"), told
        other = replace(LORA, rank=3, targets=("q", "up"))
        run(lora_recipe(recipe, folder / "qwen3", other), folder / "qwen3-other")
        yield folder


def model_of(path: Path, adapter: Path | None = None) -> Transformer:
    return load_run(path, "cpu", "float32", adapter).model


def adapted(path: Path) -> Transformer:
    """The model of a LoRA run as it was trained: changes beside weights."""
    folder, step = find_run(path)
    recipe = folder.recipe()
    model = Transformer(recipe.model)
    load_weights(model, folder.load_base())
    adapt(model, recipe.lora, seed=0)
    model.load_state_dict(model.state_dict() | folder.load(step).model)
    return model.eval()


@pytest.mark.parametrize("name", SHAPES)
def test_merged_equals_adapted(runs, tmp_path, name):
    merge_run(runs / f"{name}-lora", tmp_path / "merged")
    found, want = logits(model_of(tmp_path / "merged")), logits(adapted(runs / f"{name}-lora"))
    assert (want - logits(model_of(runs / name))).abs().max() > 1e-3
    torch.testing.assert_close(found, want, rtol=0, atol=1e-6)
    torch.testing.assert_close(logits(model_of(runs / f"{name}-lora")), found, rtol=0, atol=0)


def test_a_merged_run_is_an_ordinary_one(runs, tmp_path, capsys):
    out = tmp_path / "merged"
    assert main(["merge", str(runs / "qwen3-lora"), "--out", str(out)]) == 0
    capsys.readouterr()
    merged = RunFolder(out)
    assert merged.recipe().lora == LoraConfig()
    assert merged.recipe().init == InitConfig()
    assert not (out / "base").exists()
    before = RunFolder(runs / "qwen3").best()
    assert (
        merged.load(merged.best()).model.keys()
        == RunFolder(runs / "qwen3").load(before).model.keys()
    )
    with pytest.raises(RunError, match="holds a run already"):
        merge_run(runs / "qwen3-lora", out)
    with pytest.raises(RunError, match="nothing is to be merged"):
        merge_run(out, tmp_path / "twice")


def exported(name: str, model: Transformer) -> torch.nn.Module:
    """Our weights in transformers' own model."""
    config = model.config
    settings = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_embeddings,
    }
    if name == "qwen3":
        theirs = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**settings))
    else:
        theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
    tensors = {}
    for own, value in model.state_dict().items():
        module, _, kind = own.rpartition(".")
        tensors[f"{named_there(module, LLAMA)}.{kind}"] = value
    tensors.setdefault("lm_head.weight", model.head_weight.detach())
    theirs.load_state_dict(tensors)
    return theirs.eval()


@torch.no_grad()
def their_logits(theirs: torch.nn.Module) -> torch.Tensor:
    tokens = torch.randint(0, 256, (3, 12), generator=torch.Generator().manual_seed(4))
    return theirs(tokens).logits


@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_the_adapters_folder_against_peft_on_the_exported_model(runs, name):
    peft = pytest.importorskip("peft")
    theirs = exported(name, model_of(runs / name))
    torch.testing.assert_close(
        their_logits(theirs), logits(model_of(runs / name)), rtol=0, atol=1e-5
    )
    wrapped = peft.PeftModel.from_pretrained(theirs, runs / f"{name}-lora" / "adapter").eval()
    want = logits(adapted(runs / f"{name}-lora"))
    torch.testing.assert_close(their_logits(wrapped), want, rtol=0, atol=1e-5)
    with wrapped.disable_adapter():
        assert (their_logits(wrapped) - want).abs().max() > 1e-3


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_that_peft_wrote_is_read(runs, tmp_path, rslora):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM",
        init_lora_weights=False, use_rslora=rslora, rank_pattern={"down_proj": 2},
    )  # fmt: skip
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(exported("qwen3", model_of(runs / "qwen3")), config).eval()
    wrapped.save_pretrained(tmp_path / "theirs")
    found = logits(model_of(runs / "qwen3", tmp_path / "theirs"))
    assert (found - logits(model_of(runs / "qwen3"))).abs().max() > 1e-2
    torch.testing.assert_close(found, their_logits(wrapped), rtol=0, atol=1e-5)


def test_several_adapters_on_one_base(runs):
    """By the run that made it, and by the files that it left; at rank 2 and 3."""
    for name in ("qwen3-lora", "qwen3-other"):
        want = logits(model_of(runs / name))
        torch.testing.assert_close(
            logits(model_of(runs / "qwen3", runs / name)), want, rtol=0, atol=0
        )
        files = logits(model_of(runs / "qwen3", runs / name / "adapter"))
        torch.testing.assert_close(files, want, rtol=0, atol=0)
    assert not torch.equal(logits(model_of(runs / "qwen3-lora")), want)


def test_changes_alone_are_written_by_command(runs, tmp_path, capsys):
    out, run = tmp_path / "adapter", runs / "qwen3-lora"
    assert main(["merge", str(run), "--out", str(out), "--only-adapter"]) == 0
    assert "step" in capsys.readouterr().out
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (out / name).read_bytes() == (run / "adapter" / name).read_bytes()
    assert main(["merge", str(runs / "qwen3"), "--out", str(out), "--only-adapter"]) == 2
    assert "holds no adapter" in capsys.readouterr().err


def test_generate_with_an_adapter_writes_as_its_run_does(runs, capsys):
    def written(*arguments: object) -> str:
        options = ("--prompt", "def ", "--max-tokens", 12, "--device", "cpu")
        assert main(["generate", *map(str, arguments), *map(str, options)]) == 0
        return capsys.readouterr().out

    alone = written(runs / "qwen3-lora")
    assert written(runs / "qwen3", "--adapter", runs / "qwen3-lora") == alone
    assert written(runs / "qwen3", "--adapter", runs / "qwen3-lora" / "adapter") == alone


def test_an_adapter_for_another_base_is_refused(runs, capsys):
    """By its shapes, and where they agree by the base's fingerprint."""
    code = main(["generate", str(runs / "llama"), "--adapter", str(runs / "gpt2-lora")])
    assert code == 2
    assert "it was made for another base" in capsys.readouterr().err
    for adapter in (runs / "qwen3-lora", runs / "qwen3-lora" / "adapter"):
        with pytest.raises(RunError, match="for another base") as fault:
            with_adapter(
                RunFolder(runs / "llama").weights(RunFolder(runs / "llama").best()), adapter
            )
        assert str(runs / "qwen3") in str(fault.value)


def test_what_is_no_adapter_is_told(runs, tmp_path):
    with pytest.raises(RunError, match="holds no adapter"):
        read_adapter(runs / "qwen3")
    with pytest.raises(RunError, match="is not a run folder"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("use_dora", True, "use_dora"),
        ("peft_type", "IA3", "peft_type IA3"),
        ("alpha_pattern", {"q_proj": 3}, "alpha_pattern"),
        ("bias", "all", "bias all"),
        ("r", None, "says no r"),
    ],
)
def test_settings_without_a_counterpart_are_refused(runs, tmp_path, setting, value, told):
    shutil.copytree(runs / "qwen3-lora" / "adapter", tmp_path / "adapter")
    (tmp_path / "adapter" / "manifest.json").unlink()
    path = tmp_path / "adapter" / "adapter_config.json"
    values = json.loads(path.read_text(encoding="utf-8")) | {setting: value}
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(RunError, match=told):
        read_adapter(tmp_path / "adapter")


def test_a_shape_without_a_name_says_why_it_has_no_adapter_folder(runs):
    assert not (runs / "gpt2-lora" / "adapter").exists()
    events = [
        r for r in RunFolder(runs / "gpt2-lora").rows("metrics.jsonl") if r["kind"] == "event"
    ]
    assert 'norm = "layer"' in events[-1]["message"]
    assert "sparrow merge" in events[-1]["message"]
