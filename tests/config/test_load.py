"""Recipes: read strictly, written back equal, every fault told at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparrowlm.config import (
    CleanConfig,
    DataConfig,
    MixConfig,
    ModelConfig,
    Recipe,
    dump_recipe,
    find_recipe,
    has_stages,
    load_recipe,
    load_stages,
    recipe_from_dict,
    resolve_model,
)
from sparrowlm.config.line import dump_stages
from sparrowlm.config.units import Span, parse_bytes, parse_span
from sparrowlm.errors import ConfigError

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_is_written_back_equal(path, tmp_path):
    copy = tmp_path / "copy.toml"
    if has_stages(path):
        stages = load_stages(path)
        copy.write_text(dump_stages(stages), encoding="utf-8")
        assert load_stages(copy) == stages
        return
    recipe = load_recipe(path)
    copy.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(copy) == recipe


@given(text=st.text(), number=st.floats(allow_nan=False, allow_infinity=False))
def test_any_string_and_number_survive_the_file(text, number, tmp_path_factory):
    recipe = Recipe(
        data=DataConfig(path=(text, "b"), document_separator=text),
        model=replace(ModelConfig(), rope_theta=number),
    )
    path = tmp_path_factory.mktemp("toml") / "r.toml"
    path.write_bytes(dump_recipe(recipe).encode("utf-8", "surrogatepass"))
    assert load_recipe(path) == recipe


def test_all_faults_are_told_with_their_lines_and_near_misses(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('[model]\nn_layer = 3\nmlp = "gelo"\n\n[train]\nseed = "one"\n[trian]\n')
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    told = str(caught.value)
    assert "4 faults" in told
    assert "line 2: unknown key model.n_layer; did you mean n_layers?" in told
    assert "line 3: model.mlp is 'gelo'; choose from swiglu" in told
    assert "line 6: train.seed is 'one', and must be of type int" in told
    assert "unknown key trian; did you mean train?" in told


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"train": {"batch_tokens": 1.5}}, "must be of type int"),
        ({"train": {"seed": True}}, "must be of type int"),
        ({"data": {"skip_bad": 1}}, "must be of type bool"),
        ({"data": {"path": [1]}}, "must be of type str"),
        ({"model": 3}, "must be a table"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(values, told):
    with pytest.raises(ConfigError, match=told):
        recipe_from_dict(values)


def test_a_whole_number_serves_as_a_float_and_a_string_as_a_list():
    recipe = recipe_from_dict({"optim": {"lr": 1}, "data": {"path": "a.txt"}})
    assert recipe.optim.lr == 1.0
    assert recipe.data.path == ("a.txt",)


MIX = """
[data]
val_fraction = 0.2

[[data.mix]]
path = "stories.jsonl"
weight = 0.7

[[data.mix]]
path = ["poems/", "songs.txt"]
name = "verse"
{extra}
[data.clean]
dedup = "near"
languages = ["zh", "en"]
"""


def test_lists_of_tables_are_read_and_written_back_equal(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(MIX.format(extra=""), encoding="utf-8")
    recipe = load_recipe(path)
    assert recipe.data.mix == (
        MixConfig(("stories.jsonl",), 0.7),
        MixConfig(("poems/", "songs.txt"), name="verse"),
    )
    assert recipe.data.clean == CleanConfig("near", languages=("zh", "en"))
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe
    assert "mix" not in dump_recipe(Recipe())


def test_a_fault_in_a_list_of_tables_names_its_entry_and_line(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(MIX.format(extra="wieght = 2\ntext_key = 3\n"), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    told = str(caught.value)
    assert "line 12: unknown key data.mix[1].wieght; did you mean weight?" in told
    assert "line 13: data.mix[1].text_key is 3, and must be of type str" in told
    with pytest.raises(ConfigError, match=r"data\.mix\[0\] must be a table, not 3"):
        recipe_from_dict({"data": {"mix": 3}})


def test_a_missing_recipe_names_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean .*shakespeare-char-cpu.toml"):
        find_recipe("shakespear-char-cpu.toml")


def test_data_beside_a_recipe_of_ours_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (found,) = load_recipe(find_recipe("identity-lora")).data.path
    assert Path(found).read_text(encoding="utf-8").startswith('{"messages"')
    own = tmp_path / "recipes/identity.jsonl"
    own.parent.mkdir()
    own.touch()
    assert load_recipe(find_recipe("identity-lora")).data.path == ("recipes/identity.jsonl",)
    copy = tmp_path / "mine.toml"
    copy.write_text('[data]\npath = ["other/identity.jsonl"]\n', encoding="utf-8")
    assert load_recipe(copy).data.path == ("other/identity.jsonl",)


def test_from_is_a_key_though_python_keeps_the_word():
    recipe = recipe_from_dict({"init": {"from": "runs/a"}})
    assert recipe.init.from_ == "runs/a"
    assert 'from = "runs/a"' in dump_recipe(recipe)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2000 steps", Span(2000, "steps")),
        ("1 epoch", Span(1, "epochs")),
        ("300M tokens", Span(3e8, "tokens")),
        ("0.5 minutes", Span(30, "seconds")),
        ("1 hour", Span(3600, "seconds")),
    ],
)
def test_lengths(text, expected):
    assert parse_span(text, key="k", units=("steps", "epochs", "tokens", "seconds")) == expected


@pytest.mark.parametrize("text", ["", "steps", "0 steps", "-1 steps", "3 parsecs", "1e999 steps"])
def test_a_length_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="k"):
        parse_span(text, key="k", units=("steps", "tokens"))


def test_bytes():
    assert parse_bytes("4GB", key="k") == 4_000_000_000
    assert parse_bytes("512 MiB", key="k") == 512 * 2**20
    with pytest.raises(ConfigError, match="is not a size"):
        parse_bytes("4 gallons", key="k")


def test_impossible_shapes_are_told_together():
    with pytest.raises(ConfigError) as caught:
        resolve_model(ModelConfig(d_model=100, n_heads=3, n_kv_heads=2, vocab_size=50), 65)
    told = str(caught.value)
    assert "does not divide by model.n_heads" in told
    assert "does not divide by model.n_kv_heads" in told
    assert "model.vocab_size 50 is below the tokenizer's 65" in told


def test_a_larger_table_than_the_tokenizer_is_allowed():
    assert resolve_model(ModelConfig(vocab_size=50304), 50257).vocab_size == 50304
