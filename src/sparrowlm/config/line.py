"""A recipe that lists stages: `[[stage]]`, run in order, each from where the one before ended.

    [model]                     # common to all stages
    d_model = 256

    [[stage]]
    kind = "pretrain"
    [stage.data]
    path = ["notes/"]

    [[stage]]
    kind = "sft"                # starts from the weights of the stage before
    [stage.data]
    path = ["chats.jsonl"]

A stage is a recipe of its own: the file's common tables, with its own keys over them. Shape and
vocabulary of a stage that starts from another one are that one's, so the common `[model]` and
`[tokenizer]` are for those that start afresh. Where a run is named (`init.from`, `distill.teacher`,
`rollout.reward_model`, `tokenizer.path`), `@sft` stands for the run of the earlier stage `sft`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from sparrowlm.config.load import (
    build_table,
    dump_tables,
    line_numbers,
    near_miss,
    read_toml,
    refuse,
    toml,
)
from sparrowlm.config.schema import ModelConfig, Recipe, Stages, TokenizerConfig
from sparrowlm.errors import ConfigError

# The settings that name a run, and what of the run they mean.
REFERENCES = (
    ("init", "from_", ""),
    ("distill", "teacher", ""),
    ("rollout", "reward_model", ""),
    ("tokenizer", "path", "tokenizer"),
)
INHERITED = ("model", "tokenizer")


class NamedStage(NamedTuple):
    """One of the stages of a file."""

    name: str
    recipe: Recipe

    @property
    def inherits(self) -> frozenset[str]:
        """The tables that come from the run it starts from."""
        recipe = self.recipe
        if not recipe.init.from_:
            return frozenset()
        own = {"model": recipe.model != ModelConfig()}
        own["tokenizer"] = recipe.tokenizer != TokenizerConfig()
        return frozenset(name for name in INHERITED if not own[name])


@dataclass(frozen=True)
class StageTable(Recipe):
    """What a `[[stage]]` may hold: the tables of a recipe, and these two."""

    kind: Stages = "pretrain"  # Which stream and which objective
    name: str = ""  # In folders and on the command line; derived: kind


def has_stages(path: Path) -> bool:
    """Whether a recipe lists stages.

    Raises:
        ConfigError: no such file, or not TOML.
    """
    return isinstance(read_toml(path)[0].get("stage"), list | dict)


def load_stages(path: Path) -> list[NamedStage]:
    """Read a recipe that lists stages.

    Raises:
        ConfigError: no such file, no list, or any key or value that does not fit.
    """
    values, text = read_toml(path)
    tables = values.pop("stage", None)
    if not isinstance(tables, list) or not tables or not all(isinstance(t, dict) for t in tables):
        raise ConfigError(
            "lists no stages",
            where=str(path),
            fix='write each as a table in double brackets: [[stage]], and under it kind = "sft"',
        )
    faults: list[str] = []
    lines = line_numbers(text)
    build_table(Recipe, values, "", faults, lines)
    read = [
        build_table(StageTable, own, f"stage[{number}].", faults, lines)
        for number, own in enumerate(tables)
    ]
    faults += _misnamed(tables, read, lines)
    refuse(faults, str(path))
    found: list[NamedStage] = []
    for own, table in zip(tables, read, strict=True):
        name = table.name or table.kind
        merged = _merged(values, own, found[-1].name if found else "")
        found.append(NamedStage(name, build_table(Recipe, merged, "", [], {})))
    check_references(found, str(path))
    return found


def _misnamed(
    tables: Sequence[dict[str, Any]], read: Sequence[StageTable], lines: Mapping[str, int]
) -> list[str]:
    """Stages without a kind, with a name that no folder could have, or with another's name."""
    faults: list[str] = []
    names: list[str] = []
    for number, (own, table) in enumerate(zip(tables, read, strict=True)):
        place = f"stage[{number}]."
        told = f"line {lines[place]}: " if place in lines else ""
        name = table.name or table.kind
        if "stage" in own:
            faults.append(f"{told}{place}stage is called kind inside of a [[stage]]")
        elif "kind" not in own:
            faults.append(f'{told}{place}kind is missing: kind = "pretrain", "sft", …')
        elif not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            faults.append(f"{told}{place}name is {name!r}; use letters, digits, _ and -")
        elif name in names:
            faults.append(f'{told}a second stage is called {name}; give it a name = "…" of its own')
        names.append(name)
    return faults


def _merged(common: dict[str, Any], own: dict[str, Any], before: str) -> dict[str, Any]:
    """A stage's own tables over the common ones, and where it starts.

    Args:
        common: what stands outside of all stages.
        own: what stands in this one.
        before: the name of the stage before it; "": it is the first.
    """
    own = dict(own)
    kind = own.pop("kind")
    own.pop("name", None)
    common = dict(common)
    if before:
        common.pop("init", None)  # it says where the first one starts
        own.setdefault("init", {})
        own["init"] = {"from": f"@{before}", **own["init"]}
    if before and own["init"]["from"]:
        for table in INHERITED:
            common.pop(table, None)
    return _over(common, own) | {"stage": kind}


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Tables over tables, key by key; what is no table replaces."""
    merged = dict(below)
    for key, value in above.items():
        inner = merged.get(key)
        both = isinstance(inner, dict) and isinstance(value, dict)
        merged[key] = _over(inner, value) if both and inner is not None else value
    return merged


def check_references(stages: Sequence[NamedStage], source: str) -> None:
    """See that every `@name` is an earlier stage.

    Raises:
        ConfigError: one is not.
    """
    faults: list[str] = []
    for number, stage in enumerate(stages):
        earlier = [one.name for one in stages[:number]]
        for table, key, _ in REFERENCES:
            value = getattr(getattr(stage.recipe, table), key)
            if value.startswith("@") and value[1:] not in earlier:
                hint = near_miss(value[1:], earlier) if earlier else "; it is the first"
                where = f"stage {stage.name}: {table}.{key.rstrip('_')}"
                faults.append(f"{where} is {value!r}, and no earlier stage is called so{hint}")
    refuse(faults, source)


def stage_folders(stages: Sequence[NamedStage], out: Path) -> list[Path]:
    """The run folders of the stages: `1-pretrain`, `2-sft` …"""
    return [out / f"{number}-{stage.name}" for number, stage in enumerate(stages, 1)]


def placed(stage: NamedStage, folders: Mapping[str, Path]) -> Recipe:
    """The recipe of a stage with the run folder of an earlier one for every `@name`."""
    recipe = stage.recipe
    for table, key, inside in REFERENCES:
        held = getattr(recipe, table)
        value = getattr(held, key)
        if value.startswith("@"):
            changed = replace(held, **{key: str(folders[value[1:]] / inside)})
            recipe = replace(recipe, **{table: changed})
    return recipe


def dump_stages(stages: Sequence[NamedStage]) -> str:
    """TOML that `load_stages` reads back as equal values."""
    lines: list[str] = []
    for stage in stages:
        head = ["[[stage]]", f"name = {toml(stage.name)}", f"kind = {toml(stage.recipe.stage)}"]
        lines += [*head, *dump_tables(stage.recipe, "stage."), ""]
    return "\n".join(lines)
