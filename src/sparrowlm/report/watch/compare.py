"""What differs between the configurations of two runs, or between one and the defaults."""

from __future__ import annotations

import json
import tomllib
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

from sparrowlm.config import Recipe, dump_recipe
from sparrowlm.report.tables import meanings


class Difference(NamedTuple):
    """A setting with two values, each as TOML writes it; empty where it is not set."""

    key: str
    a: str
    b: str
    meaning: str


def defaults() -> str:
    """The recipe that says nothing, as TOML."""
    return dump_recipe(Recipe())


def differences(a: str, b: str) -> list[Difference]:
    """The settings that two recipes differ in, in the order of the first.

    They are compared as text, not as recipes, so that one of an older version compares too.

    Args:
        a: TOML.
        b: TOML.

    >>> differences('[train]\\nseed = 1', '[train]\\nseed = 2')[0][:3]
    ('train.seed', '1', '2')
    """
    left, right = settings(a), settings(b)
    told = explained()
    return [
        Difference(key, left.get(key, ""), right.get(key, ""), told.get(key, ""))
        for key in {**left, **right}
        if left.get(key) != right.get(key)
    ]


def settings(text: str) -> dict[str, str]:
    """{"train.seed": "1337"} of a TOML text; empty where it is none.

    >>> settings('stage = "sft"\\n[[data.mix]]\\nweight = 0.5')
    {'stage': '"sft"', 'data.mix[0].weight': '0.5'}
    """
    try:
        return _flat(tomllib.loads(text), "")
    except tomllib.TOMLDecodeError:
        return {}


def _flat(value: Any, name: str) -> dict[str, str]:
    if isinstance(value, dict):
        before = f"{name}." if name else ""
        parts = [_flat(inner, f"{before}{key}") for key, inner in value.items()]
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        parts = [_flat(inner, f"{name}[{place}]") for place, inner in enumerate(value)]
    else:
        return {name: json.dumps(value, ensure_ascii=False, default=str)}
    return {key: entry for part in parts for key, entry in part.items()}


def explained() -> dict[str, str]:
    """{"train.seed": what it means} of every setting of the schema."""
    return _explained(Recipe(), "")


def _explained(value: Any, before: str) -> dict[str, str]:
    told = {f"{before}{name.rstrip('_')}": text for name, text in meanings(type(value)).items()}
    for field in fields(value):
        inner = getattr(value, field.name)
        if is_dataclass(inner):
            told |= _explained(inner, f"{before}{field.name}.")
    return told
