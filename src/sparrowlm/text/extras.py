"""Packages that only some formats need: loaded where they are used, and named where they miss."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from sparrowlm.errors import DataError


def need(module: str, extra: str, where: str, *, load: bool = True) -> Any:
    """A package that Sparrow does not ask for by itself.

    Args:
        module: what to import.
        extra: the extra of `sparrowlm` that brings it.
        where: the file or address that asks for it.
        load: False only looks whether it is there, and returns None.

    Raises:
        DataError: it is not installed.
    """
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise DataError(
            f"needs {module.partition('.')[0]}, which is not installed",
            where=where,
            fix=f'pip install "sparrowlm[{extra}]"',
        )
    return importlib.import_module(module) if load else None
