"""As much of Go's text/template as a Modelfile of ours uses, so that its template can be rendered
without Go: text with trim marks, `range $i, $_ := .Messages`, `$last := …`, `if`, `else`, `end`,
fields, variables, and the functions eq, ne, and, or, not, len and slice.

It is written after the language's documentation; no Go program has checked it.
"""

from __future__ import annotations

import re
from typing import Any

FUNCTIONS = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "and": lambda a, b: a and b,
    "or": lambda a, b: a or b,
    "not": lambda a: not a,
    "len": len,
    "slice": lambda a, first: a[first:],
}


def render(template: str, data: dict[str, Any]) -> str:
    """The text of a template."""
    tree, rest = _block(_pieces(template))
    assert not rest
    return _write(tree, data, {"$": data})


def _pieces(template: str) -> list[tuple[str, str]]:
    """("text", …) and ("action", …) in turn, white space trimmed where `{{-` and `-}}` say so."""
    found: list[tuple[str, str]] = []
    at, trim = 0, False
    for match in re.finditer(r"\{\{(-\s)?\s*(.*?)\s*(\s-)?\}\}", template, flags=re.S):
        text = template[at : match.start()]
        text = text.lstrip() if trim else text
        found += [("text", text.rstrip() if match[1] else text), ("action", match[2])]
        at, trim = match.end(), bool(match[3])
    return [*found, ("text", template[at:].lstrip() if trim else template[at:])]


def _block(pieces: list[tuple[str, str]]) -> tuple[list[Any], list[tuple[str, str]]]:
    """The nodes up to an `end` or `else`, and what follows."""
    nodes: list[Any] = []
    while pieces:
        (kind, text), *pieces = pieces
        word = text.split()[0] if kind == "action" else ""
        if word in ("end", "else"):
            assert text in ("end", "else"), text
            return nodes, [(kind, text), *pieces]
        if word in ("if", "range"):
            inner, (closing, *pieces) = _block(pieces)
            other: list[Any] = []
            if closing[1] == "else":
                other, (closing, *pieces) = _block(pieces)
            assert closing[1] == "end"
            nodes.append((word, text.split(maxsplit=1)[1], inner, other))
        else:
            nodes.append((kind, text))
    return nodes, []


def _write(nodes: list[Any], dot: Any, names: dict[str, Any]) -> str:
    parts: list[str] = []
    for kind, text, *inner in nodes:
        if kind == "text":
            parts.append(text)
        elif kind == "if":
            chosen = inner[0] if _value(text, dot, names) else inner[1]
            parts.append(_write(chosen, dot, dict(names)))
        elif kind == "range":
            match = re.fullmatch(r"(\$\w+), (\$\w+) := (.+)", text)
            assert match, text
            for number, item in enumerate(_value(match[3], dot, names)):
                own = names | {match[1]: number, match[2]: item}
                parts.append(_write(inner[0], item, own))
        elif match := re.fullmatch(r"(\$\w+) := (.+)", text):
            names[match[1]] = _value(match[2], dot, names)
        else:
            parts.append(str(_value(text, dot, names)))
    return "".join(parts)


def _value(text: str, dot: Any, names: dict[str, Any]) -> Any:
    tokens = re.findall(r'"[^"]*"|[()]|[^\s()]+', text)
    value, rest = _call(tokens, dot, names)
    assert not rest, text
    return value


def _call(tokens: list[str], dot: Any, names: dict[str, Any]) -> tuple[Any, list[str]]:
    if tokens[0] not in FUNCTIONS:
        return _operand(tokens, dot, names)
    function, tokens = FUNCTIONS[tokens[0]], tokens[1:]
    values = []
    while tokens and tokens[0] != ")":
        value, tokens = _operand(tokens, dot, names)
        values.append(value)
    return function(*values), tokens


def _operand(tokens: list[str], dot: Any, names: dict[str, Any]) -> tuple[Any, list[str]]:
    first, *rest = tokens
    if first == "(":
        value, (closing, *rest) = _call(rest, dot, names)
        assert closing == ")"
        return value, rest
    if first.startswith('"'):
        return first[1:-1], rest
    if re.fullmatch(r"\d+", first):
        return int(first), rest
    name, *fields = first.split(".")
    value = names[name] if name else dot
    for field in fields:
        value = value[field]
    return value, rest
