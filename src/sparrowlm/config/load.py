"""TOML to a frozen recipe, strictly, and back.

All faults of a file are reported together, each with its line and, for an unknown key, the
nearest known one.
"""

from __future__ import annotations

import difflib
import json
import tomllib
import types
import typing
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sparrowlm.config.schema import Recipe
from sparrowlm.errors import ConfigError

# A wheel carries the recipes inside the package; a checkout has them two folders above it.
_PACKAGE = Path(__file__).resolve().parents[1]
_FOLDERS = (_PACKAGE / "recipes", _PACKAGE.parents[1] / "recipes")


def load_recipe(path: Path) -> Recipe:
    """Read a recipe file.

    Args:
        path: a TOML file. Data that comes beside a recipe of Sparrow's is found from any working
            folder, as the recipe itself is.

    Raises:
        ConfigError: no such file, not TOML, or any key or value that does not fit.
    """
    values, text = read_toml(path)
    if isinstance(values.get("stage"), list | dict):
        raise ConfigError(
            "lists stages that run in order, and one stage is wanted here",
            where=str(path),
            fix=f"sparrow train {path} runs them; or take one of them, RUN/1-NAME/config.toml",
        )
    recipe = recipe_from_dict(values, source=str(path), text=text)
    if path.parent.resolve() not in _FOLDERS:
        return recipe
    data = tuple(_beside(path, named) for named in recipe.data.path)
    return replace(recipe, data=replace(recipe.data, path=data))


def _beside(recipe: Path, named: str) -> str:
    """Data by the name in a recipe, or the file of that name beside the recipe where only it is
    there."""
    own = recipe.with_name(Path(named).name or recipe.name)
    return str(own) if own.is_file() and not Path(named).exists() else named


def read_toml(path: Path) -> tuple[dict[str, Any], str]:
    """A recipe file's values, and its text.

    Raises:
        ConfigError: no such file, or not TOML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as fault:
        raise ConfigError("no such recipe", where=str(path), fix=_nearby(path)) from fault
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError(f"cannot be read: {fault}", where=str(path)) from fault
    try:
        return tomllib.loads(text), text
    except tomllib.TOMLDecodeError as fault:
        raise ConfigError(f"is not TOML: {fault}", where=str(path)) from fault


def find_recipe(name: str) -> Path:
    """A recipe's file: a path, or the name of one that comes with Sparrow.

    Raises:
        ConfigError: neither; names the nearest.
    """
    path = Path(name)
    if path.is_file():
        return path
    for folder in _FOLDERS:
        inside = folder / (path.name if path.suffix == ".toml" else f"{path.name}.toml")
        if inside.is_file() and path.parent.name in ("", "recipes"):
            return inside
    raise ConfigError("no such recipe", where=name, fix=_nearby(path))


def recipe_from_dict(values: dict[str, Any], *, source: str = "", text: str = "") -> Recipe:
    """A recipe from nested dictionaries; `text` lets faults name their lines."""
    faults: list[str] = []
    recipe = build_table(Recipe, values, "", faults, line_numbers(text))
    refuse(faults, source)
    return recipe


def refuse(faults: list[str], source: str) -> None:
    """Tell all faults of a file together.

    Raises:
        ConfigError: there are some.
    """
    if faults:
        head = f"{len(faults)} faults" if len(faults) > 1 else faults[0]
        more = "".join(f"\n  - {fault}" for fault in faults) if len(faults) > 1 else ""
        raise ConfigError(head + more, where=source)


def dump_recipe(recipe: Recipe) -> str:
    """TOML that `load_recipe` reads back as an equal value."""
    return "\n".join([f"stage = {toml(recipe.stage)}", *dump_tables(recipe)]) + "\n"


def dump_tables(recipe: Recipe, below: str = "") -> list[str]:
    """The lines of a recipe's tables, `[train]` or, below `stage`, `[stage.train]`."""
    found: list[str] = []
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        if is_dataclass(value):
            found += _table(below + _key(field.name), value)
    return found


def _table(name: str, value: Any) -> list[str]:
    """A `[name]` with its values, and behind it the tables and lists of tables inside of it."""
    plain, inner = [], []
    for entry in fields(value):
        key, held = _key(entry.name), getattr(value, entry.name)
        if is_dataclass(held):
            inner += _table(f"{name}.{key}", held)
        elif isinstance(held, tuple) and held and is_dataclass(held[0]):
            for item in held:
                inner += ["", f"[[{name}.{key}]]", *_table("", item)[2:]]
        elif not (isinstance(held, tuple) and not held and _is_list_of_tables(value, entry.name)):
            plain.append(f"{key} = {toml(held)}")
    return ["", f"[{name}]", *plain, *inner]


def _is_list_of_tables(value: Any, name: str) -> bool:
    """Whether a field is a list of tables: an empty one is left out of the file."""
    return _item_kind(get_type_hints(type(value))[name]) is not None


def _item_kind(hint: Any) -> type | None:
    """The dataclass that a `tuple[Kind, ...]` holds, if it holds one."""
    items = get_args(hint)[:1] if get_origin(hint) is tuple else ()
    return typing.cast(type, items[0]) if items and is_dataclass(items[0]) else None


def _key(name: str) -> str:
    """`from_` stands for the key `from`, which Python keeps for itself."""
    return name.rstrip("_")


def build_table(
    kind: type, values: Any, prefix: str, faults: list[str], lines: dict[str, int]
) -> Any:
    """One dataclass from a dictionary; faults are collected, and defaults stand in for them."""
    if not isinstance(values, dict):
        faults.append(f"{prefix.rstrip('.')} must be a table, not {values!r}")
        return kind()
    hints = get_type_hints(kind)
    known = {_key(field.name): field.name for field in fields(kind)}
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        where = f"line {lines[prefix + key]}: " if prefix + key in lines else ""
        if key not in known:
            faults.append(f"{where}unknown key {prefix}{key}{near_miss(key, known)}")
        elif is_dataclass(hints[known[key]]):
            inner = typing.cast(type, hints[known[key]])
            arguments[known[key]] = build_table(inner, value, f"{prefix}{key}.", faults, lines)
        elif (item := _item_kind(hints[known[key]])) is not None:
            entries = value if isinstance(value, list | tuple) else [value]
            arguments[known[key]] = tuple(
                build_table(item, entry, f"{prefix}{key}[{number}].", faults, lines)
                for number, entry in enumerate(entries)
            )
        else:
            try:
                arguments[known[key]] = _convert(hints[known[key]], value)
            except ValueError as fault:
                faults.append(f"{where}{prefix}{key} {fault}")
    return kind(**arguments)


def near_miss(key: str, known: typing.Iterable[str]) -> str:
    """`; did you mean x?` or the whole list where nothing is near."""
    known = list(known)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"


def _convert(hint: Any, value: Any) -> Any:
    """`value` as `hint` wants it.

    Raises:
        ValueError: it does not fit; the message continues "<key> …".
    """
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            choices = [str(choice) for choice in get_args(hint)]
            raise ValueError(f"is {value!r}; choose from {', '.join(choices)}")
        return value
    if get_origin(hint) is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            raise ValueError(f"is {value!r}, and must be a list")
        return tuple(_convert(get_args(hint)[0], item) for item in items)
    if isinstance(hint, types.UnionType):
        raise TypeError(f"the schema's unions have no reader yet: {hint}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ValueError(f"is {value!r}, and must be of type {hint.__name__}")
    return value


def line_numbers(text: str) -> dict[str, int]:
    """Where each `table.key` of a TOML text stands, by a plain reading of its lines."""
    places: dict[str, int] = {}
    table = ""
    entries: dict[str, int] = {}  # how often each [[table]] was met
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("[") and "]" in stripped and "=" not in stripped:
            name = stripped.strip("[]").split("]")[0].strip()
            if stripped.startswith("[["):
                name = _entry(name, entries, inside=False)
                entries[name] = entries.get(name, -1) + 1
                table = f"{name}[{entries[name]}]."
            else:
                table = _entry(name, entries) + "."
            places.setdefault(table, number)
        elif "=" in stripped and not stripped.startswith("#"):
            places.setdefault(table + stripped.split("=")[0].strip(), number)
    return places


def _entry(name: str, entries: dict[str, int], *, inside: bool = True) -> str:
    """`stage.train` as `stage[1].train`, below the second `[[stage]]`; `inside` the last part
    is taken to be one of several too."""
    found, parts = "", name.split(".")
    for place, part in enumerate(parts):
        found = f"{found}.{part}" if found else part
        if found in entries and (inside or place < len(parts) - 1):
            found += f"[{entries[found]}]"
    return found


def toml(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    if isinstance(value, str):
        # A JSON string is a TOML string, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    return repr(value)


def _nearby(path: Path) -> str:
    folders = (path.parent, Path("recipes"), *_FOLDERS)
    names = [str(entry) for folder in folders for entry in sorted(folder.glob("*.toml"))]
    stems = {Path(name).stem: name for name in reversed(names)}
    close = difflib.get_close_matches(path.stem, stems, n=1, cutoff=0.4)
    return f"did you mean {stems[close[0]]}?" if close else "give the path of a TOML file"
