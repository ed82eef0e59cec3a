"""A corpus that is on the machine already: the source of Python's own standard library."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from sparrowlm.data.sources import Source
from sparrowlm.errors import DataError

# Not code to learn from: other people's packages, tests, tables of bytes.
LEFT_OUT = ("site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__")
LEFT_OUT_MODULES = ("idlelib", "lib2to3", "pydoc_data")
ENOUGH = 2_000_000  # bytes of source below which a Python counts as shipped without it
INSTALLED = 12_000_000  # bytes taken from installed packages instead
LARGEST_PACKAGE = 3_000_000  # bytes; of a larger one nothing is taken: it would be most of it all


class Corpus(NamedTuple):
    """Python's own source, and which part of it."""

    sources: list[Source]
    description: str
    """Reads on as "… of Python 3.13.1": figures compare only within one version."""


def python_sources() -> Corpus:
    """The standard library, or installed packages where this Python came without its source.

    The group is the top-level module, so that the held-out part is not a copy of the rest.

    Raises:
        DataError: neither is there.
    """
    found, description = standard_library(), "the standard library"
    if _size(found) < ENOUGH:
        found = installed_packages()
        description = "the installed packages, since the standard library came without its source,"
    if _size(found) < ENOUGH:
        raise DataError(
            "this Python has no source code to learn from",
            where=str(stdlib_folder()),
            fix="name text of your own: --corpus PATH",
        )
    return Corpus([Source(path, module) for module, path in found], description)


def standard_library() -> list[tuple[str, Path]]:
    """(top-level module, file) of the running Python's library, sorted by path; about 10 MB."""
    folder = stdlib_folder()
    return [(module, path) for module, path in _modules(folder) if module not in LEFT_OUT_MODULES]


def installed_packages() -> list[tuple[str, Path]]:
    """(package, file) of some installed packages, about 12 MB of them, the same ones on every
    call: whole packages, in the order of a hash of their names."""
    packages: dict[str, list[Path]] = {}
    for folder in sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}):
        for module, path in _modules(Path(folder)):
            packages.setdefault(module, []).append(path)
    taken, total = [], 0
    for module in sorted(packages, key=_hash):
        size = sum(path.stat().st_size for path in packages[module])
        if size <= LARGEST_PACKAGE and total + size <= INSTALLED:
            taken += [(module, path) for path in packages[module]]
            total += size
    return sorted(taken)


def stdlib_folder() -> Path:
    """Where the running Python keeps its library."""
    return Path(sysconfig.get_path("stdlib"))


def _modules(folder: Path) -> Iterator[tuple[str, Path]]:
    """(top-level name, file) of the Python source below `folder`, sorted."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in LEFT_OUT]  # walked no further
        found += [Path(place, name) for name in names if name.endswith(".py")]
    for path in sorted(found, key=lambda path: path.relative_to(folder).as_posix()):
        parts = path.relative_to(folder).parts
        code_page = parts[0] == "encodings" and parts[-1].startswith("cp")
        if not code_page and _is_text(path):
            yield parts[0].removesuffix(".py"), path


def _is_text(path: Path) -> bool:
    """Whether a file holds UTF-8 and is not empty; a few old ones say another encoding."""
    try:
        return bool(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, OSError):
        return False


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode()).digest()


def _size(found: Iterable[tuple[str, Path]]) -> int:
    return sum(path.stat().st_size for _, path in found)
