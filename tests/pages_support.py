"""docs/run_page.py as a module, for the tests that read and run pages through it."""

from __future__ import annotations

import importlib.util
import multiprocessing
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from support import Copy, run_copies

_spec = importlib.util.spec_from_file_location(
    "run_page", Path(__file__).parents[1] / "docs" / "run_page.py"
)
assert _spec is not None
assert _spec.loader is not None
pages = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pages)


def run_page(page: Path, folder: Path, **options: Any) -> str:
    """As `pages.run_page`, but that commands start as copies of one process where they can, which
    spares each of them the loading of PyTorch. Asserts that no traceback was shown."""
    environment = options["environment"]

    def start(words: list[str]) -> CompletedProcess[str]:
        return run_copies(Copy(words, environment, str(folder), rate=0))

    copied = start if "forkserver" in multiprocessing.get_all_start_methods() else None
    told = pages.run_page(page, folder, start=copied, **options)
    assert "Traceback" not in told
    return told
