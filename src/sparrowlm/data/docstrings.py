"""Questions and answers that are on the machine already: the docstrings of a corpus of Python.

    json/__init__.py: def dumps(…): "Serialize ``obj`` to a JSON formatted ``str``. …"
    -> user: What does `json.dumps` do?
       assistant: Serialize `obj` to a JSON formatted `str`.

The source is parsed and never imported, so nothing of it runs.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sparrowlm import files
from sparrowlm.data.sources import Source
from sparrowlm.text.turns import dump

SHORTEST, LONGEST = 20, 240  # characters of an answer
PHRASINGS = 3  # of one docstring: two to learn from where the third is held out
DO = ("What does {} do?", "What is {} for?", "Explain {}.", "Tell me about {}.")
BE = ("What is {}?", "What is {} for?", "Explain {}.", "Tell me about {}.")
# What a module is known as, where its file is called otherwise.
KNOWN_AS = {"ntpath" if os.name == "nt" else "posixpath": "os.path"}

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Explained(NamedTuple):
    """A public name and what it says of itself."""

    name: str
    """`os.path.join`."""
    does: bool
    """A function; otherwise a class or module, which is something."""
    answer: str

    def questions(self) -> list[str]:
        """Some of the ways to ask for it, the same ones on every call."""
        ways = DO if self.does else BE
        first = hashlib.blake2b(self.name.encode("utf-8")).digest()[0] % len(ways)
        chosen = (ways[(first + step) % len(ways)] for step in range(PHRASINGS))
        return [way.format(f"`{self.name}`") for way in chosen]


def write_chats(sources: Iterable[Source], folder: Path) -> list[Source]:
    """Conversations from the docstrings of Python files, as JSON lines: one file for each group
    of sources.

    A fact stands under several questions, and what is held out is questions by their own text: so
    a held-out question is most often about something that was learned under another wording. That
    is what answering from memory means; nobody can know what an unseen function does.

    Args:
        sources: Python files, by module.
        folder: where the `.jsonl` files go; made where it is not there.

    Returns:
        The files.
    """
    rows: dict[str, list[str]] = {}
    for source in sources:
        for found in explained(source.path.read_text(encoding="utf-8"), module_name(source.path)):
            for question in found.questions():
                row = dump(chat(question, found.answer))
                rows.setdefault(source.group, []).append(row)
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for group, lines in rows.items():
        path = folder / f"{group}.jsonl"
        files.write_text(path, "".join(f"{line}\n" for line in lines))
        made.append(Source(path))
    return made


def chat(question: str, answer: str) -> dict[str, Any]:
    """One question with its answer, as a row of a file."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns}


def explained(source: str, module: str) -> Iterator[Explained]:
    """The public names of a module's source that say what they are.

    A file that does not parse (a template, another Python's) holds none.

    >>> list(explained('def area(w, h):\\n    "The area of a rectangle."', "shapes"))
    [Explained(name='shapes.area', does=True, answer='The area of a rectangle.')]
    """
    if any(part.startswith("_") for part in module.split(".")):
        return
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    seen: set[str] = set()
    for name, node in _public(tree, module):
        answer = first_paragraph(ast.get_docstring(node) or "")
        # Where a name is defined twice, by platform or version, the first one speaks.
        if answer and name not in seen:
            seen.add(name)
            yield Explained(name, isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef), answer)


def _public(module: ast.Module, name: str) -> Iterator[tuple[str, Documented]]:
    """A module and the functions and classes that it defines, by their full names. What begins
    with _ is nobody's business; and methods are too many for a small model to keep apart from what
    people ask for."""
    yield name, module
    waiting: list[ast.AST] = list(module.body)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if not node.name.startswith("_"):
                yield f"{name}.{node.name}", node
        elif isinstance(node, ast.If | ast.Try):
            waiting = [*ast.iter_child_nodes(node), *waiting]


def first_paragraph(docstring: str) -> str:
    """The first paragraph as one line, where it reads as an answer; "" otherwise.

    >>> first_paragraph("Return the sum of\\na ``list``.\\n\\nMore about it.")
    'Return the sum of a `list`.'
    """
    paragraphs = re.split(r"\n\s*\n", docstring.strip())
    # Some begin with their own signature: `D.pop(k) -> v`.
    paragraphs = [one for one in paragraphs if not re.match(r"[\w.]+\(.*\)( ->.*)?$", one.strip())]
    text = " ".join(paragraphs[0].split()) if paragraphs else ""
    text = text.replace("``", "`")
    if len(text) > LONGEST:
        text = _sentences(text)
    prose = text[-1:] in (".", "!", "?") or (text[-1:].isalnum() and " " in text)
    whole = SHORTEST <= len(text) <= LONGEST and prose and ">>>" not in text
    return text if whole else ""


def _sentences(text: str) -> str:
    """As many whole sentences of a text as an answer has room for."""
    end = text.rfind(". ", 0, LONGEST - 1)
    return text[: end + 1]


def module_name(path: Path) -> str:
    """The dotted name under which a file of the library or an installed package is imported.

    Raises:
        ValueError: it lies in neither.
    """
    places = {sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")}
    for place in sorted(places, key=len, reverse=True):  # site-packages lies inside of the library
        if path.is_relative_to(place):
            parts = list(path.relative_to(place).with_suffix("").parts)
            if parts[-1] == "__init__":
                parts.pop()
            name = ".".join(parts)
            return KNOWN_AS.get(name, name)
    raise ValueError(f"{path} is no module of this Python")
