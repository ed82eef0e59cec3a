"""Recipes that list stages: common tables, what a stage inherits, every fault with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparrowlm.config import ModelConfig, TokenizerConfig, load_recipe, load_stages
from sparrowlm.config.line import dump_stages, has_stages, placed, stage_folders
from sparrowlm.errors import ConfigError

LINE = """
[model]
d_model = 64

[tokenizer]
vocab_size = 512

[train]
length = "40 steps"
seed = 7

[[stage]]
kind = "pretrain"
name = "base"
[stage.data]
path = ["notes/"]

[[stage.data.mix]]
path = "a.txt"

[[stage]]
kind = "sft"
[stage.data]
path = ["chats.jsonl"]
[stage.train]
length = "20 steps"

[[stage]]
kind = "reward"

[[stage]]
kind = "ppo"
[stage.init]
from = "@sft"
[stage.rollout]
reward_model = "@reward"

[[stage]]
kind = "distill"
[stage.init]
from = ""
[stage.model]
n_layers = 1
[stage.tokenizer]
kind = "folder"
path = "@base"
[stage.distill]
teacher = "@sft"
"""


@pytest.fixture
def line(tmp_path: Path) -> Path:
    path = tmp_path / "line.toml"
    path.write_text(LINE, encoding="utf-8")
    return path


def test_each_stage_is_a_recipe_over_the_common_tables(line: Path) -> None:
    stages = load_stages(line)
    assert [stage.name for stage in stages] == ["base", "sft", "reward", "ppo", "distill"]
    base, sft, reward, ppo, distill = (stage.recipe for stage in stages)
    assert [one.stage for one in (base, sft)] == ["pretrain", "sft"]
    assert base.model == ModelConfig(d_model=64)
    assert base.data.mix[0].path == ("a.txt",)
    assert (base.train.length, sft.train.length, sft.train.seed) == ("40 steps", "20 steps", 7)
    assert [one.init.from_ for one in (base, sft, reward, ppo)] == ["", "@base", "@sft", "@sft"]
    assert (ppo.rollout.reward_model, distill.distill.teacher) == ("@reward", "@sft")
    assert has_stages(line)


def test_a_stage_that_starts_from_another_has_its_shape_and_vocabulary(line: Path) -> None:
    base, sft, _, _, distill = load_stages(line)
    assert base.inherits == frozenset()
    assert (sft.recipe.model, sft.recipe.tokenizer) == (ModelConfig(), TokenizerConfig())
    assert sft.inherits == {"model", "tokenizer"}
    assert distill.recipe.model == ModelConfig(d_model=64, n_layers=1)
    assert distill.recipe.init.from_ == ""


def test_a_common_start_is_the_first_stages(tmp_path: Path) -> None:
    path = tmp_path / "line.toml"
    path.write_text('[init]\nfrom = "runs/b"\n[[stage]]\nkind = "sft"\n[[stage]]\nkind = "dpo"\n')
    assert [stage.recipe.init.from_ for stage in load_stages(path)] == ["runs/b", "@sft"]


def test_names_of_stages_become_folders(line: Path) -> None:
    stages = load_stages(line)
    folders = stage_folders(stages, Path("runs/x"))
    assert folders[:2] == [Path("runs/x/1-base"), Path("runs/x/2-sft")]
    runs = {stage.name: folder for stage, folder in zip(stages, folders, strict=True)}
    ppo, distill = (placed(stage, runs) for stage in stages[3:])
    assert ppo.init.from_ == str(Path("runs/x/2-sft"))
    assert ppo.rollout.reward_model == str(Path("runs/x/3-reward"))
    assert distill.tokenizer.path == str(Path("runs/x/1-base/tokenizer"))


def test_stages_are_written_back_equal(line: Path, tmp_path: Path) -> None:
    stages = load_stages(line)
    copy = tmp_path / "copy.toml"
    copy.write_text(dump_stages(stages), encoding="utf-8")
    assert load_stages(copy) == stages


def test_all_faults_are_told_with_their_lines_and_near_misses(tmp_path: Path) -> None:
    path = tmp_path / "line.toml"
    path.write_text(
        '[train]\nlenght = "3 steps"\n'
        '[[stage]]\nkind = "pretrian"\n'
        '[[stage]]\nkind = "sft"\nnaem = "x"\n[stage.train]\nlenght = "2 steps"\n'
        "[[stage]]\n[stage.trian]\nseed = 1\n"
        '[[stage]]\nkind = "sft"\n'
        '[[stage]]\nstage = "sft"\n'
        '[[stage]]\nkind = "dpo"\nname = "a/b"\n'
    )
    with pytest.raises(ConfigError) as caught:
        load_stages(path)
    told = str(caught.value)
    for fault in (
        "9 faults",
        "line 2: unknown key train.lenght; did you mean length?",
        "line 4: stage[0].kind is 'pretrian'; choose from pretrain",
        "line 7: unknown key stage[1].naem; did you mean name?",
        "line 9: unknown key stage[1].train.lenght; did you mean length?",
        "unknown key stage[2].trian; did you mean train?",
        "line 10: stage[2].kind is missing",
        "line 13: a second stage is called sft",
        "line 15: stage[4].stage is called kind",
        "line 17: stage[5].name is 'a/b'",
    ):
        assert fault in told, fault


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[[stage]]\nkind = "sft"\n[stage.init]\nfrom = "@sft"\n', "is '@sft', and no earlier"),
        (
            '[[stage]]\nkind = "sft"\n[[stage]]\nkind = "ppo"\n[stage.init]\nfrom = "@sfd"\n',
            "did you mean sft?",
        ),
        ('[stage]\nkind = "sft"\n', "double brackets"),
        ("stage = []\n", "double brackets"),
        ('stage = "sft"\n', "lists no stages"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "line.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_stages(path)
    assert told in str(caught.value)


def test_one_recipe_is_not_a_list_of_stages(line: Path) -> None:
    with pytest.raises(ConfigError, match=r"sparrow train .* runs them"):
        load_recipe(line)
