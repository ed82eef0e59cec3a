"""The lower half of the page: configuration, data, machine, events and commands."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import fields, is_dataclass
from typing import Any, cast

from sparrowlm.config import Recipe
from sparrowlm.config.units import show_bytes, show_duration
from sparrowlm.report.advice import Command, next_commands, reproduce
from sparrowlm.report.read import Run, number
from sparrowlm.report.words import escape

Pairs = list[tuple[str, str]]


def configuration(run: Run) -> str:
    """What differs from the defaults, then the whole file."""
    if not run.config_text:
        return ""
    changed = ""
    if run.recipe is not None:
        for name, rows in _changed(run.recipe).items():
            lines = "".join(
                f"<tr><th scope=row>{escape(key)}</th><td>{escape(value)}</td>"
                f"<td class=help>{escape(meaning)}</td></tr>"
                for key, value, meaning in rows
            )
            changed += (
                f"<tbody><tr><th colspan=3 class=group>{escape(name)}</th></tr>{lines}</tbody>"
            )
    table = f"<table class=settings>{changed}</table>" if changed else ""
    return (
        f"<section><h2>Configuration</h2><p class=note>What differs from the defaults, as "
        f"resolved for this run.</p>{table}<details><summary>All settings (config.toml)</summary>"
        f"<pre>{escape(run.config_text)}</pre></details></section>"
    )


def _changed(recipe: Recipe) -> dict[str, list[tuple[str, str, str]]]:
    """{section: [(key, value, meaning)]} of the values that are not the schema's."""
    default, result = Recipe(), {}
    for section in fields(recipe):
        value, usual = getattr(recipe, section.name), getattr(default, section.name)
        if not is_dataclass(value):
            if value != usual:
                result.setdefault("recipe", []).append((section.name, _shown(value), ""))
            continue
        told = meanings(type(value))
        rows = [
            (entry.name.rstrip("_"), _shown(now), _told(told.get(entry.name, ""), before))
            for entry in fields(value)
            if (now := getattr(value, entry.name)) != (before := getattr(usual, entry.name))
        ]
        if rows:
            result[section.name] = rows
    return result


def meanings(kind: type) -> dict[str, str]:
    """The comments behind a schema class's fields, which are their help texts."""
    source = inspect.getsource(kind)
    body = cast(ast.ClassDef, ast.parse(source).body[0]).body
    meanings = {}
    for field in body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            written = "\n".join(source.splitlines()[field.lineno - 1 : field.end_lineno])
            comment = re.search(r"#\s*(.+)$", written, re.MULTILINE)
            if comment:
                meanings[field.target.id] = re.sub(r"; derived:.*", "", comment[1])
    return meanings


def _told(meaning: str, default: Any) -> str:
    """What a setting means, and its default where that is more than "derived"."""
    return f"{meaning}; default {_shown(default)}" if default else meaning


def _shown(value: Any) -> str:
    if is_dataclass(value):  # a table inside of a table: what differs from its schema
        usual = type(value)()
        told = {entry.name: getattr(value, entry.name) for entry in fields(value)}
        parts = [f"{name} {_shown(v)}" for name, v in told.items() if v != getattr(usual, name)]
        return ", ".join(parts) or "none"
    if isinstance(value, tuple):
        return ", ".join(_shown(item) for item in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return f"“{value}”" if value != value.strip() or not value else value
    if isinstance(value, int):
        return f"{value:,}" if value >= 10_000 else str(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def data_and_machine(run: Run) -> str:
    """machine.json in two tables: what was read, and where it ran."""
    parts = ""
    if run.data:
        parts += f"<section><h2>Data</h2>{_table(_pairs(run.data))}</section>"
    if run.machine:
        parts += f"<section><h2>Machine</h2>{_table(_pairs(run.machine))}</section>"
    return f"<div class=pair>{parts}</div>" if parts else ""


def _pairs(facts: dict[str, Any], before: str = "", most: int = 8) -> Pairs:
    """Nested facts as flat rows; long lists are cut, and say so."""
    rows: Pairs = []
    for key, value in facts.items():
        name = f"{before}{key.replace('_', ' ')}"
        if isinstance(value, dict) and any(isinstance(part, dict) for part in value.values()):
            rows += _pairs(value, f"{name}, ")
        elif isinstance(value, list | tuple):
            items = [_fact(key, item) for item in value[:most]]
            cut = f" … and {len(value) - most:,} more" if len(value) > most else ""
            rows.append((name, ", ".join(items) + cut))
        elif value is not None and value != "":
            rows.append((name, _fact(key, value)))
    return rows


def _fact(key: str, value: Any) -> str:
    """A value with the unit that its key names."""
    amount = number(value)
    if isinstance(value, dict):
        if "path" in value:  # a source: hundreds may follow
            return str(value["path"])
        told = {name: part for name, part in value.items() if part not in ("", None)}
        return ", ".join(
            f"{name.replace('_', ' ')} {_fact(name, part)}" for name, part in told.items()
        )
    if amount is None:
        return _shown(value) if isinstance(value, bool) else str(value)
    if key == "bytes" or key.endswith(("_bytes", "memory")):
        return show_bytes(amount)
    if key.endswith("seconds"):
        return show_duration(amount)
    return f"{amount:,.0f}" if isinstance(value, int) else f"{amount:,.6g}"


def _table(rows: Pairs) -> str:
    lines = "".join(
        f"<tr><th scope=row>{escape(name)}</th><td>{escape(value)}</td></tr>"
        for name, value in rows
    )
    return f"<table>{lines}</table>"


def events(run: Run) -> str:
    """What happened besides training."""
    if not run.events:
        return ""
    lines = ""
    for row in run.events:
        spent = number(row.get("seconds"))
        lines += (
            f"<tr><td class=number>{number(row.get('step')) or 0:,.0f}</td>"
            f"<td class=number>{'' if spent is None else show_duration(spent)}</td>"
            f"<td>{escape(row.get('message', ''))}</td></tr>"
        )
    return (
        "<section><h2>Events</h2><table class=events><thead><tr><th scope=col>step</th>"
        f"<th scope=col>time</th><th scope=col>what</th></tr></thead>{lines}</table></section>"
    )


def commands(run: Run) -> str:
    """How to get this run again, and what to do with it."""
    command, told = reproduce(run)
    again = (
        f"<section><h2>The same again</h2><pre class=command>{escape(command)}</pre>"
        f"<p class=note>{escape(told)}</p></section>"
        if run.config_text
        else ""
    )
    rows = "".join(_command(entry) for entry in next_commands(run.folder, run.recipe))
    return f"{again}<section><h2>What to try next</h2>{rows}</section>"


def _command(entry: Command) -> str:
    return (
        f"<div class=try><pre class=command>{escape(entry[0])}</pre><p>{escape(entry[1])}</p></div>"
    )
