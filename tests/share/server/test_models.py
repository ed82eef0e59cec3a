"""What a program finds out before it asks: models, health, metrics, the schema."""

from __future__ import annotations

import re

import openai
from prometheus_client.parser import text_string_to_metric_families

from server_support import CONTEXT, Running, chat_tokenizer, running, served


def test_the_models_say_what_they_are(client: openai.OpenAI) -> None:
    found = {model.id: model.to_dict() for model in client.models.list()}
    assert list(found) == ["tiny", "tuned", "base"]
    assert all(model["object"] == "model" for model in found.values())
    assert found["tuned"]["parent"] == "tiny"
    assert found["tiny"]["parent"] is None
    about = found["tiny"]["sparrow"]
    assert isinstance(about, dict)
    assert about["kind"] == "chat"
    assert about["context"] == found["tiny"]["max_model_len"] == CONTEXT
    assert about["vocab_size"] == chat_tokenizer().vocab_size
    assert about["adapters"] == ["tuned"]
    assert about["defaults"]["temperature"] == 0.8
    base = found["base"]["sparrow"]
    assert isinstance(base, dict)
    assert base["kind"] == "base"
    assert client.models.retrieve("tuned").to_dict() == found["tuned"]


def test_health(server: Running) -> None:
    with server.http() as http:
        answer = http.get("/health")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "active": 0, "waiting": 0, "slots": 48}


def test_metrics_count_what_was_done() -> None:
    with running([served("tiny")], slots=3) as server:
        client = server.client()
        said = client.completions.create(model="tiny", prompt="ab", max_tokens=5, n=2, seed=1)
        list(client.completions.create(model="tiny", prompt="ab", max_tokens=3, stream=True))
        with server.http() as http:
            http.get("/nowhere")
            http.post("/v1/completions", json={"n": 0})
            page = http.get("/metrics")
        assert page.headers["content-type"].startswith("text/plain")
        found = {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(page.text)
            for sample in family.samples
        }
    assert said.usage is not None
    drawn = said.usage.completion_tokens + 3
    assert found["sparrow_requests_total", "/v1/completions", "200"] == 2
    assert found["sparrow_requests_total", "/v1/completions", "400"] == 1
    assert found["sparrow_requests_total", "404", "other"] == 1
    assert found["sparrow_prompt_tokens_total", "tiny"] == 4
    assert found["sparrow_completion_tokens_total", "tiny"] == drawn
    assert found["sparrow_time_to_first_token_seconds_count",] == 3
    assert found["sparrow_time_between_tokens_seconds_count",] == drawn - 3
    assert found["sparrow_slots",] == 3
    assert found["sparrow_active_slots",] == found["sparrow_queue_length",] == 0


def test_the_schema_names_every_route_and_its_faults(server: Running) -> None:
    with server.http() as http:
        schema = http.get("/openapi.json").json()
    assert set(schema["paths"]) == {
        "/health", "/metrics", "/v1/models", "/v1/models/{name}", "/v1/chat/completions",
        "/v1/completions",
    }  # fmt: skip
    chat = schema["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert set(chat) == {"200", "4XX", "5XX"}
    assert set(chat["200"]["content"]) == {"application/json", "text/event-stream"}


def test_nothing_is_loaded_from_elsewhere(server: Running) -> None:
    with server.http() as http:
        answer = http.get("/health")
        page = http.get("/")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["cache-control"] == "no-cache"
    assert page.headers["content-security-policy"] == policy
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert links
    with server.http() as http:
        for link in links:
            assert not link.startswith(("http:", "https:", "//")), link
            if not link.startswith(("data:", "#")):
                assert http.get(link if link.startswith("/") else f"/{link}").status_code == 200
