"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# How long an example takes is the machine's affair, and others use it too.
settings.register_profile("sparrow", deadline=None)
settings.load_profile("sparrow")

# The hubs of these tests are servers on this machine, from which a user's own setting would keep
# their client; it is read when the client is first imported.
os.environ.pop("HF_HUB_OFFLINE", None)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real corpora beside the checkout. They are not part of the project: without them a test
    skips, except in CI, where their absence is a fault."""
    if SHARED.is_dir():
        return SHARED
    if os.environ.get("CI"):
        pytest.fail(f"CI must provide the shared data at {SHARED}")
    pytest.skip(f"needs the shared data at {SHARED}")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Products of this size cost less than waking a second thread for them."""
    torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """One process for `-m gpu`: several would measure, and fill, each other's memory."""
    return 0 if config.option.markexpr == "gpu" else None


LONGEST = ("test_kills", "test_readme", "test_docs", "test_load", "test_tour", "test_ranks")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first, so that no process is left with one at the end."""
    items.sort(key=lambda item: not any(name in item.nodeid for name in LONGEST))
