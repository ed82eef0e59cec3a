"""docs/run_page.py as a module, for the tests that read and run pages through it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location(
    "run_page", Path(__file__).parents[1] / "docs" / "run_page.py"
)
assert _spec is not None
assert _spec.loader is not None
pages = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pages)
