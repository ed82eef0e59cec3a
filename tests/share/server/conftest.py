"""One server for all tests that only ask, and one whose answers are written beforehand."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from server_support import Running, Scene, running, scripted, served


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    """A chat model, one with changes, and a base model."""
    models = [served("tiny"), served("tuned", parent="tiny"), served("base", chat=False)]
    with running(models) as found:
        yield found


@pytest.fixture(scope="session")
def client(server: Running) -> openai.OpenAI:
    return server.client()


@pytest.fixture(scope="session")
def _scene() -> Iterator[Scene]:
    model, script = scripted()
    with running([model], slots=4) as found:
        yield Scene(found, found.client(), model, script)


@pytest.fixture
def scene(_scene: Scene) -> Iterator[Scene]:
    yield _scene
    _scene.script.seconds, _scene.script.fault = 0.0, None
