"""Exports to Hugging Face's form, with transformers as the authority."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers

import lora_support
from export_support import SHAPES, TINY, bpe, greedy, hostile_texts, logits, make_lora_run, make_run
from sparrowlm.checkpoint import find_run
from sparrowlm.cli import main
from sparrowlm.config import Recipe, TokenizerConfig
from sparrowlm.errors import ConfigError, RunError
from sparrowlm.model.transformer import Transformer
from sparrowlm.share.adapters import extract_adapter, merge_run
from sparrowlm.share.adopt import adopt
from sparrowlm.share.export import check, hf, writing
from sparrowlm.share.export.shapes import standard_name
from sparrowlm.share.export.writing import dtype_of, export
from sparrowlm.share.opening import read_folder
from sparrowlm.text.chat import ChatFormat
from sparrowlm.text.tokenizer import Tokenizer, byte_tokenizer, character_tokenizer
from sparrowlm.text.turns import conversation_of


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return bpe()


def values_of(folder: Path, name: str = "config.json") -> dict[str, object]:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def text_recipe(folder: Path, steps: int) -> Recipe:
    """A few steps on the source of a Python module, with a small vocabulary of ours."""
    recipe = lora_support.text_recipe(folder, steps)
    model = replace(recipe.model, vocab_size=0)
    return replace(recipe, model=model, tokenizer=TokenizerConfig(vocab_size=300))


def load(folder: Path) -> torch.nn.Module:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_greedy_tokens_against_transformers(
    tmp_path: Path, tokenizer: Tokenizer, shape: str
) -> None:
    ours = make_run(tmp_path / "run", SHAPES[shape], tokenizer)
    done = export(tmp_path / "run", "hf", tmp_path / "out")
    assert "transformers" in done.checks[0]
    theirs = load(tmp_path / "out")
    kind = shape.partition(",")[0]
    assert theirs.config.model_type == kind
    assert type(theirs).__module__.startswith("transformers.models")
    ids = torch.randint(
        0, ours.config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        want = theirs(ids).logits
    assert want.std() > 0.3
    torch.testing.assert_close(logits(ours, ids), want, atol=1e-5, rtol=1e-5)
    prompt = ids[:1, :9]
    theirs.generation_config = transformers.GenerationConfig(do_sample=False)
    written = theirs.generate(prompt, max_new_tokens=24)
    assert written[0, 9:].tolist() == greedy(ours, prompt[0].tolist())


@pytest.mark.parametrize("shape", SHAPES)
def test_our_export_comes_back_by_import(tmp_path: Path, tokenizer: Tokenizer, shape: str) -> None:
    ours = make_run(tmp_path / "run", SHAPES[shape], tokenizer)
    export(tmp_path / "run", "hf", tmp_path / "out")
    done = adopt(tmp_path / "out", tmp_path / "back")
    assert done.tokenizer is not None
    assert done.tokenizer.fingerprint == tokenizer.fingerprint
    run, step = find_run(tmp_path / "back")
    back = Transformer(run.recipe().model).eval()
    back.load_state_dict(run.weights(step))
    ids = torch.randint(
        0, ours.config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(2)
    )
    torch.testing.assert_close(logits(back, ids), logits(ours, ids), atol=1e-5, rtol=1e-5)
    if shape != "gpt2, no biases":  # it has zeros for them now
        assert run.recipe().model == replace(ours.config, dropout=0.0)
        assert all(
            torch.equal(back.state_dict()[name], value) for name, value in ours.state_dict().items()
        )


def test_settings_stand_in_the_old_and_the_new_spelling(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    make_run(tmp_path / "run", SHAPES["qwen3_moe"], tokenizer)
    export(tmp_path / "run", "hf", tmp_path / "out", dtype="bfloat16")
    values = values_of(tmp_path / "out")
    assert values["rope_theta"] == values["rope_parameters"]["rope_theta"] == 10000.0  # pyright: ignore[reportIndexIssue]
    assert values["num_experts"] == values["num_local_experts"] == 5
    assert values["dtype"] == values["torch_dtype"] == "bfloat16"
    assert values["architectures"] == ["Qwen3MoeForCausalLM"]


def test_ids_and_chats_against_the_auto_tokenizer(tmp_path: Path, tokenizer: Tokenizer) -> None:
    make_run(tmp_path / "run", TINY, tokenizer)
    export(tmp_path / "run", "hf", tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in hostile_texts(200):
        found = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert found == tokenizer.encode(text)
    chat = ChatFormat(tokenizer)
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "麻雀？"},
        {"role": "assistant", "content": "A bird.", "reasoning_content": "Small."},
        {"role": "user", "content": "Sure?"},
    ]
    assert theirs.apply_chat_template(turns, tokenize=False) == chat.text(conversation_of(turns))
    prompt = theirs.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert prompt == chat.prompt_ids(turns)
    assert theirs.model_max_length == 64


@pytest.mark.parametrize("kind", ["bytes", "chars"])
def test_small_vocabularies_load_too(tmp_path: Path, kind: str) -> None:
    letters = sorted({*"abc def\n麻雀"})
    tokenizer = byte_tokenizer() if kind == "bytes" else character_tokenizer(letters)
    make_run(tmp_path / "run", TINY, tokenizer)
    export(tmp_path / "run", "hf", tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = theirs("abc 麻雀\n")["input_ids"]
    assert ids == tokenizer.encode("abc 麻雀\n")
    assert theirs.decode(ids) == "abc 麻雀\n"
    ends = values_of(tmp_path / "out", "generation_config.json").get("eos_token_id")
    assert ends == ([256] if kind == "bytes" else None)


def test_an_answer_ends_where_the_run_ends_it(tmp_path: Path, tokenizer: Tokenizer) -> None:
    eot, end = tokenizer.eot_id, tokenizer.special_ids["<|im_end|>"]
    for stage, ends in (("sft", sorted([eot, end])), ("pretrain", [eot])):
        make_run(tmp_path / stage, TINY, tokenizer, Recipe(stage=stage))
        export(tmp_path / stage, "hf", tmp_path / f"{stage}-hf")
        values = values_of(tmp_path / f"{stage}-hf", "generation_config.json")
        assert values["eos_token_id"] == ends
        assert values["temperature"] == 0.8
        transformers.GenerationConfig.from_pretrained(tmp_path / f"{stage}-hf").validate()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounded_weights_are_told_apart_from_a_wrong_export(
    tmp_path: Path, tokenizer: Tokenizer, dtype: str
) -> None:
    ours = make_run(tmp_path / "run", TINY, tokenizer)
    done = export(tmp_path / "run", "hf", tmp_path / "out", dtype=dtype)
    held = read_folder(tmp_path / "out")
    assert {tensor.dtype for tensor in held.values()} == {getattr(torch, dtype)}
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode & 0o444 == 0o444
    ids = check.probe(ours.config)
    rounded = {name: tensor.to(getattr(torch, dtype)) for name, tensor in ours.state_dict().items()}
    moved = (check.logits_of(ours.config, rounded, ids) - logits(ours, ids)).abs().max().item()
    assert moved > 1e-3
    assert done.checks[1].endswith(f"{moved:.2g}")


def test_numbers_that_a_dtype_cannot_hold_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    make_run(tmp_path / "run", TINY, tokenizer)
    run, step = find_run(tmp_path / "run")
    saved = run.load(step)
    saved.model["blocks.1.mlp.up.weight"][0, 0] = 1e5
    run.save(saved, keep_last=1)
    with pytest.raises(RunError, match=r"blocks\.1\.mlp\.up\.weight reaches 100000, which float16"):
        export(tmp_path / "run", "hf", tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


def test_shards_and_their_index(tmp_path: Path, tokenizer: Tokenizer, monkeypatch) -> None:
    ours = make_run(tmp_path / "run", SHAPES["qwen3_moe"], tokenizer)
    monkeypatch.setattr(hf.save_shards, "__defaults__", (100_000,))
    export(tmp_path / "run", "hf", tmp_path / "out")
    index = values_of(tmp_path / "out", "model.safetensors.index.json")
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 2
    assert sorted(set(index["weight_map"].values())) == shards  # pyright: ignore[reportAttributeAccessIssue]
    count = sum(value.numel() for value in ours.state_dict().values())
    assert index["metadata"] == {"total_size": 4 * count, "total_parameters": count}
    ids = check.probe(ours.config)
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "out")(ids).logits, logits(ours, ids))


def test_a_lora_run_and_an_adapter_are_merged(tmp_path: Path, tokenizer: Tokenizer) -> None:
    base = dict(make_run(tmp_path / "base", TINY, tokenizer).state_dict())
    make_lora_run(tmp_path / "lora", tmp_path / "base", tokenizer)
    merge_run(tmp_path / "lora", tmp_path / "merged")
    extract_adapter(tmp_path / "lora", tmp_path / "peft")
    run, step = find_run(tmp_path / "merged")
    want = run.weights(step)
    assert not torch.equal(want["blocks.0.attention.q.weight"], base["blocks.0.attention.q.weight"])
    for name, path, adapter in (
        ("lora", "lora", None),
        ("run", "base", tmp_path / "lora"),
        ("peft", "base", tmp_path / "peft"),
    ):
        out = tmp_path / f"{name}-hf"
        export(tmp_path / path, "hf", out, adapter=adapter)
        held = read_folder(out)
        for ours, theirs in (("q", "q_proj"), ("o", "o_proj")):
            found = held[f"model.layers.0.self_attn.{theirs}.weight"]
            assert torch.equal(found, want[f"blocks.0.attention.{ours}.weight"])
    words = (tmp_path / "run-hf" / "README.md").read_text(encoding="utf-8")
    assert words.count("# lora\n") == 1
    assert "| LoRA | rank 2, alpha 8, merged |" in words
    assert "- base (stage pretrain): " in words
    assert str(tmp_path) not in words


@pytest.mark.parametrize(
    ("changes", "kind", "named"),
    [
        ({"mlp": "relu2"}, "qwen3", ['model.mlp = "relu2"']),
        ({"bias": True}, "qwen3", ["model.bias = true"]),
        ({"qk_norm": False, "n_experts": 4}, "qwen3_moe", ["model.qk_norm = false"]),
        (
            {"mlp": "reglu", "tie_embeddings": False, "head_bias": True},
            "qwen3",
            ['model.mlp = "reglu"', "model.head_bias = true"],
        ),
        (
            {"norm": "layer", "positions": "learned", "mlp": "gelu", "n_kv_heads": 2,
             "head_dim": 8},
            "gpt2",
            ["model.qk_norm = true", "model.n_kv_heads = 2", "model.head_dim = 8"],
        ),
    ],
)  # fmt: skip
def test_a_shape_without_a_name_is_refused_with_every_setting(
    tmp_path: Path, tokenizer: Tokenizer, changes: dict[str, object], kind: str, named: list[str]
) -> None:
    ours = make_run(tmp_path / "run", replace(TINY, **changes), tokenizer)
    nearest, faults = standard_name(ours.config)
    assert nearest == kind
    assert [fault.split(" (")[0] for fault in faults] == named
    with pytest.raises(RunError) as refused:
        export(tmp_path / "run", "hf", tmp_path / "out")
    assert all(name in str(refused.value) for name in named)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_is_there_is_not_overwritten(tmp_path: Path, tokenizer: Tokenizer) -> None:
    make_run(tmp_path / "run", TINY, tokenizer)
    (tmp_path / "out").mkdir()
    with pytest.raises(RunError, match="exists already"):
        export(tmp_path / "run", "hf", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_runs_that_hold_no_language_model_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    make_run(tmp_path / "ids", replace(TINY, vocab_size=100), None)
    with pytest.raises(RunError, match="has no tokenizer"):
        export(tmp_path / "ids", "hf", tmp_path / "out")
    make_run(tmp_path / "reward", TINY, tokenizer, Recipe(stage="reward"))
    with pytest.raises(RunError, match='stage = "reward"'):
        export(tmp_path / "reward", "hf", tmp_path / "out")


def test_an_export_that_computes_something_else_fails(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch
) -> None:
    """The check has to notice a wrong setting, a wrong weight and a wrong vocabulary."""
    ours = make_run(tmp_path / "run", TINY, tokenizer)
    right = hf.config_of

    def wrong(*arguments: object) -> dict[str, object]:
        values = right(*arguments)  # pyright: ignore[reportArgumentType]
        return values | {
            "rope_theta": 2e4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 2e4},
        }

    with monkeypatch.context() as patch:
        patch.setattr(hf, "config_of", wrong)
        with pytest.raises(RunError, match="logits differ"):
            export(tmp_path / "run", "hf", tmp_path / "out")
        patch.setattr(check, "_transformers", lambda kind: None)
        with pytest.raises(RunError, match="logits differ"):
            export(tmp_path / "run", "hf", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "encode", lambda self, text: [1])
        with pytest.raises(RunError, match="other ids"):
            export(tmp_path / "run", "hf", tmp_path / "out")
    run, step = find_run(tmp_path / "run")
    saved = run.load(step)
    saved.model["norm.weight"][0] = float("nan")
    run.save(saved, keep_last=1)
    with pytest.raises(RunError, match="differ by nan"):
        export(tmp_path / "run", "hf", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert ours.config.rope_theta == 1e4


def test_without_transformers_our_own_reader_checks(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch
) -> None:
    monkeypatch.setattr(check, "_transformers", lambda kind: None)
    for number, shape in enumerate(SHAPES.values()):
        make_run(tmp_path / f"run{number}", shape, tokenizer)
        done = export(tmp_path / f"run{number}", "hf", tmp_path / f"out{number}")
        assert "Sparrow's own reader" in done.checks[0]


def test_dtypes_in_either_spelling() -> None:
    assert dtype_of("hf", "BF16") == dtype_of("hf", "bfloat16") == "bfloat16"
    assert dtype_of("gguf", "float16") == dtype_of("ollama", "") == "F16"
    assert dtype_of("gguf", "q8_0") == "Q8_0"
    with pytest.raises(ConfigError, match="Q8_0 is no dtype of --to hf"):
        dtype_of("hf", "Q8_0")
    with pytest.raises(ConfigError, match="int4"):
        dtype_of("gguf", "int4")


def test_the_card_is_made_from_the_run(tmp_path: Path) -> None:
    recipe = text_recipe(tmp_path / "data", 20)
    summary, _ = lora_support.run(recipe, tmp_path / "spatz")
    assert summary is not None
    export(tmp_path / "spatz", "hf", tmp_path / "out", license="cc-by-4.0")
    card = huggingface_hub.ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert card.data.library_name == "transformers"
    assert "# spatz" in card.text
    step = find_run(tmp_path / "spatz")[1]
    assert f"| held-out loss at step {step}, nats per token | {summary['val_loss']:.4f} |" in (
        card.text
    )
    assert (
        f"| xz -9, bits per byte of held-out text | {summary['xz_bits_per_byte']:.4f} |"
        in card.text
    )
    assert "`source.txt`" in card.text
    assert str(tmp_path) not in card.text
    assert "![Loss over the steps](loss.png)" in card.text
    assert (tmp_path / "out" / "loss.png").stat().st_size > 1000
    assert card.text.count("was not taught to follow instructions") == 1


def test_a_card_tells_of_the_step_that_is_exported(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A run may have gone on to worse, and its summary tells of the end."""
    make_run(tmp_path / "run", TINY, tokenizer)
    rows = [
        {"kind": "eval", "step": step, "val_loss": loss, "val_bits_per_byte": loss / 2, "tokens": 9}
        for step, loss in ((0, 6.0), (1, 3.25), (2, 4.5))
    ]
    log = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "run" / "metrics.jsonl").write_text(log, encoding="utf-8")
    summary = json.dumps({"steps": 2, "val_loss": 4.75, "val_bits_per_byte": 2.375})
    (tmp_path / "run" / "summary.json").write_text(summary, encoding="utf-8")
    export(tmp_path / "run", "hf", tmp_path / "out")
    words = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "step 1 of 2, with a held-out loss of 3.250 nats per token, or 1.625 bits" in words
    assert "| held-out loss at step 1, nats per token | 3.2500 |" in words
    assert "4.75" not in words
    assert "| 2 | 9 | 4.5000 | 2.2500 |" in words


def test_a_card_says_what_nobody_told(tmp_path: Path, tokenizer: Tokenizer) -> None:
    make_run(tmp_path / "run", TINY, tokenizer, Recipe(stage="sft"))
    export(tmp_path / "run", "hf", tmp_path / "out")
    card = huggingface_hub.ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "unknown"
    assert "Nothing was measured." in card.text
    assert "License: unknown." in card.text
    assert "apply_chat_template" in card.text
    with pytest.raises(ConfigError, match="one name"):
        export(tmp_path / "run", "hf", tmp_path / "two", license="a\nb")


@pytest.mark.parametrize("stage", ["sft", "pretrain"])
def test_the_program_in_the_card_runs(
    tmp_path: Path, tokenizer: Tokenizer, stage: str, monkeypatch, capsys
) -> None:
    make_run(tmp_path / "run", TINY, tokenizer, Recipe(stage=stage))
    export(tmp_path / "run", "hf", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    program = (
        text.split("```python\n")[1]
        .split("```")[0]
        .replace("max_new_tokens=100", "max_new_tokens=5")
    )
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "README.md", "exec"), {})
    assert capsys.readouterr().out.endswith("\n")


def test_the_formats_of_an_export_are_those_of_the_command() -> None:
    assert set(writing.Format.__args__) == {"hf", "gguf", "ollama"}


def test_the_command_says_what_was_compared(
    tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "run", SHAPES["gpt2, no biases"], tokenizer)
    words = ["export", str(tmp_path / "run"), "--to", "hf", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "the largest logit difference is" in told
    assert "zeros stand for them" in told
    assert "model.safetensors" in told
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err
