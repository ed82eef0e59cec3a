"""What is refused, in OpenAI's shape, with the field named; nothing of it is a fault of ours."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from server_support import CONTEXT, Running, Scene, running, scripted

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"

# (field, values that are out of range or of another kind)
RANGES: list[tuple[str, list[Any]]] = [
    ("temperature", [-0.1, 2.1, 1e30, 10**400, "1", True]),
    ("top_p", [-0.1, 1.1, 1e30]),
    ("top_k", [-1, 2**31, 1.5, 10**400]),
    ("min_p", [-0.1, 1.1]),
    ("repetition_penalty", [0, -1, 101]),
    ("seed", [-1, 2**63, 10**400, 1.5]),
    ("n", [0, -1, 129, 10**30]),
    ("max_tokens", [0, -1, 2**31, 1.5]),
    ("stop", ["", [""], ["a"] * 17, ["a", 3], "a" * 201, {}]),
    ("frequency_penalty", [0.1, -2]),
    ("presence_penalty", [1]),
    ("logit_bias", [{"3": 1}]),
    ("stream", ["yes", 1]),
    ("model", [3]),
]
CHAT_RANGES: list[tuple[str, list[Any]]] = [
    *RANGES,
    ("max_completion_tokens", [0, -1, 2**31]),
    ("top_logprobs", [-1, 21, 1.5]),
    ("logprobs", [3, "x"]),
    ("tool_choice", ["required", {"type": "function", "function": {"name": "f"}}]),
    ("response_format", [{"type": "json_object"}]),
    ("reasoning_effort", ["extreme"]),
    ("chat_template_kwargs", [{"enable_thinking": "yes"}, {"add_generation_prompt": True}]),
    ("messages", [[], "hi", [3], [{"role": "poet", "content": "a"}], None]),
    ("tools", [[{"type": "function"}], [{"type": "retrieval"}], 3]),
    ("parallel_tool_calls", [False]),
]
TEXT_RANGES: list[tuple[str, list[Any]]] = [
    *RANGES,
    ("logprobs", [-1, 21, True]),
    ("prompt", [[], 3, [[]], [-1], [2**40], ["a", 3], ["a"] * 129, None]),
    ("suffix", ["end"]),
]


@pytest.mark.parametrize(
    ("route", "field", "values"),
    [(CHAT, *one) for one in CHAT_RANGES] + [(TEXT, *one) for one in TEXT_RANGES],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_value_out_of_range_is_refused_by_its_name(
    server: Running, route: str, field: str, values: list[Any]
) -> None:
    good = {"messages": HELLO} if route == CHAT else {"prompt": "a", "model": "base"}
    with server.http() as http:
        for value in values:
            answer = http.post(route, json={**good, "max_tokens": 1, field: value})
            assert answer.status_code == 400, (field, value, answer.text)
            fault = answer.json()["error"]
            assert fault["type"] == "invalid_request_error"
            assert str(fault["param"]).partition(".")[0] == field, (value, fault)
            assert field in fault["message"]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "-0.5"])
@pytest.mark.parametrize("field", ["temperature", "top_p", "min_p", "repetition_penalty", "seed"])
def test_no_number_that_is_none_gets_through(server: Running, field: str, value: str) -> None:
    body = f'{{"prompt": "a", "max_tokens": 1, "{field}": {value}}}'
    with server.http(headers={"Content-Type": "application/json"}) as http:
        answer = http.post(TEXT, content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"3", b'"a"', b"\xff\xfe", b"[" * 100_000, b"9" * 5_000,
        b'{"prompt": ' + b"[" * 5_000 + b"]" * 5_000 + b"}", b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "model": "\\ud800"}', b'{"prompt": "a", "\\ud800": 1}',
        b'{"prompt": "a", "stop": "\\ud800"}',
    ],
    ids=lambda body: repr(body[:20]),
)  # fmt: skip
@pytest.mark.parametrize("route", [CHAT, TEXT])
def test_a_body_that_is_none_is_a_fault_of_the_client(
    server: Running, route: str, body: bytes
) -> None:
    with server.http(headers={"Content-Type": "application/json"}) as http:
        answer = http.post(route, content=body)
    assert answer.status_code in (400, 404), answer.text  # a model's name may be anything
    assert answer.json()["error"]["message"]


def test_half_a_surrogate_pair_anywhere_is_refused(server: Running) -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "\ud800"}}
    deep = {"type": "function", "function": {"name": "f", "parameters": {"\ud800": ["\udfff"]}}}
    bodies = [
        {"messages": [{"role": "user", "content": "\ud800"}]},
        {"messages": HELLO, "tools": [tool]},
        {"messages": HELLO, "tools": [deep]},
    ]
    with server.http(headers={"Content-Type": "application/json"}) as http:
        for body in bodies:
            answer = http.post(CHAT, content=json.dumps(body))
            assert answer.status_code == 400, answer.text


def test_an_unknown_field_names_the_near_miss(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="did you mean temperature") as caught:
        client.chat.completions.create(model="tiny", messages=HELLO, extra_body={"temprature": 1})
    assert caught.value.param == "temprature"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"top_logprobs": 2}, "top_logprobs needs logprobs"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "are the same"),
        (
            {
                "reasoning_effort": "high",
                "extra_body": {"chat_template_kwargs": {"enable_thinking": False}},
            },
            "different things",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    client: openai.OpenAI, settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=told):
        client.chat.completions.create(model="tiny", messages=HELLO, **settings)


def test_a_prompt_too_long_is_told_with_both_numbers(client: openai.OpenAI) -> None:
    long = "z9" * CONTEXT
    for ask in (
        lambda: client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": long}]
        ),
        lambda: client.completions.create(model="base", prompt=long),
        lambda: client.completions.create(model="base", prompt=[1] * (CONTEXT + 1)),
    ):
        with pytest.raises(openai.BadRequestError, match=rf"has \d+ tokens.* {CONTEXT}") as caught:
            ask()
        assert caught.value.code == "context_length_exceeded"
    # One that fits exactly has room for one token behind it, which needs none itself.
    full = client.completions.create(model="base", prompt=[1] * CONTEXT)
    assert full.usage is not None
    assert full.usage.completion_tokens == 1


def test_an_id_that_is_none_is_refused(server: Running, client: openai.OpenAI) -> None:
    size = server.server.service.models["base"].engine.vocab_size
    with pytest.raises(openai.BadRequestError, match=f"outside the {size}"):
        client.completions.create(model="base", prompt=[size])


def test_an_unknown_model_names_those_there(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="tiny, tuned, base") as caught:
        client.chat.completions.create(model="gpt-4", messages=HELLO)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_without_a_model_the_run_itself_answers(server: Running) -> None:
    with server.http() as http:
        said = http.post(CHAT, json={"messages": HELLO, "max_tokens": 1}).json()
    assert said["model"] == "tiny"


def test_a_base_model_sends_chats_to_its_completions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="/v1/completions") as caught:
        client.chat.completions.create(model="base", messages=HELLO)
    assert caught.value.code == "not_a_chat_model"


def test_pictures_are_refused_by_their_place(client: openai.OpenAI) -> None:
    parts = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": parts}],  # pyright: ignore
        )
    assert str(caught.value.param).startswith("messages.0.content")


def test_no_such_path_or_method(server: Running) -> None:
    with server.http() as http:
        for method, path, status in (
            ("GET", "/v1/nothing", 404),
            ("GET", CHAT, 405),
            ("DELETE", "/v1/models", 405),
            ("GET", "/page/../../errors.py", 404),
            ("GET", "/page/%2e%2e%2f__init__.py", 404),
            ("GET", "/docs", 404),
        ):
            answer = http.request(method, path)
            assert answer.status_code == status, path
            assert answer.json()["error"]["message"]


def test_an_engine_that_fails_says_so_and_goes_on(scene: Scene) -> None:
    """Before the stream, within it, and then not at all."""
    scene.say("fine<|im_end|>", HELLO)
    scene.script.fault = RuntimeError("out of memory: a secret of the server's")
    with pytest.raises(openai.InternalServerError, match="engine failed") as caught:
        scene.client.chat.completions.create(model="scripted", messages=HELLO)
    assert "secret" not in str(caught.value)
    scene.script.fault, scene.script.seconds = None, 0.01
    stream = scene.client.chat.completions.create(model="scripted", messages=HELLO, stream=True)
    next(iter(stream))
    scene.script.fault = RuntimeError("again")
    with pytest.raises(openai.APIError, match="engine failed"):
        list(stream)
    scene.script.fault, scene.script.seconds = None, 0.0
    said = scene.client.chat.completions.create(model="scripted", messages=HELLO)
    assert said.choices[0].message.content == "fine"
    assert scene.running.server.service.under_way == 0


def test_an_engine_that_cannot_begin_anew_is_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    model, script = scripted("lost")
    with running([model]) as server:
        client = server.client()

        def refuse(**_: Any) -> None:
            raise RuntimeError("no memory is left")

        monkeypatch.setattr(model.engine, "session", refuse)
        script.fault = RuntimeError("it breaks")
        with pytest.raises(openai.InternalServerError, match="engine failed"):
            client.chat.completions.create(model="lost", messages=HELLO)
        with pytest.raises(openai.InternalServerError, match="has failed") as caught:
            client.chat.completions.create(model="lost", messages=HELLO)
        assert caught.value.status_code == 503
        with server.http() as http:
            health = http.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "failed")


def test_weights_that_are_no_numbers_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of our own faults says what and why, and the next request is heard."""
    model, script = scripted("nan")
    with running([model]) as server:
        client = server.client()
        monkeypatch.setattr(script, "logits", lambda hidden: hidden * float("nan"))
        for _ in range(2):
            with pytest.raises(openai.InternalServerError, match="not numbers"):
                client.chat.completions.create(model="nan", messages=HELLO)
        monkeypatch.undo()
        said = client.chat.completions.create(model="nan", messages=HELLO, max_tokens=2)
        assert said.choices[0].message.content == "aa"
