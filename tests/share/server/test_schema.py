"""Requests that schemathesis makes of the server's own schema: none of them is answered by 5xx."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from server_support import Running, running, served

OPERATIONS = [
    ("/health", "GET"), ("/metrics", "GET"), ("/v1/models", "GET"), ("/v1/models/{name}", "GET"),
    ("/v1/chat/completions", "POST"), ("/v1/completions", "POST"),
]  # fmt: skip


@pytest.fixture(scope="module")
def small() -> Iterator[Running]:
    """A context so small that no answer takes long."""
    with running([served("tiny", context=32), served("base", chat=False, context=16)]) as found:
        yield found


@pytest.mark.slow
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_no_request_is_a_fault_of_the_server(small: Running, path: str, method: str) -> None:
    schema = schemathesis.openapi.from_url(f"{small.url}/openapi.json")
    operation = schema[path][method]
    modes = list(GenerationMode) if method == "POST" else [GenerationMode.POSITIVE]
    seen: set[int] = set()

    @settings(
        max_examples=120 if method == "POST" else 20,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=st.one_of(operation.as_strategy(generation_mode=mode) for mode in modes))
    def ask(case: Any) -> None:
        answer = case.call(timeout=60)
        seen.add(answer.status_code)
        assert answer.status_code < 500, answer.text
        # A schema cannot say that a prompt fits into the context, or that a turn has a content.
        case.validate_response(answer, excluded_checks=[positive_data_acceptance])

    ask()
    assert 200 in seen or 400 in seen or 404 in seen
    assert small.server.service.under_way == 0


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}),
        ("/v1/completions", {"model": "base", "prompt": "a"}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_answers_and_events_are_as_the_schema_says(
    small: Running, path: str, asked: dict[str, Any], stream: bool
) -> None:
    operation = schemathesis.openapi.from_url(f"{small.url}/openapi.json")[path]["POST"]
    case = operation.Case(body=asked | {"stream": stream, "max_tokens": 3})
    answer = case.call_and_validate(timeout=60)
    assert answer.status_code == 200
    assert ("text/event-stream" in answer.headers["content-type"][0]) is stream
