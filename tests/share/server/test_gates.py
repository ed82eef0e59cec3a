"""Who may ask, from where, and how much: with real sockets where bytes matter."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server_support import Running, Scene, running, scripted, served, until
from sparrowlm.errors import ConfigError
from sparrowlm.share.server.gates import LOCAL, Rules, host_of
from sparrowlm.share.server.limits import Limits
from sparrowlm.share.server.running import listen, rules_for

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
KEY = "sparrow-鸟-key"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("localhost:1", 200), ("LOCALHOST", 200), ("127.0.0.1:80", 200),
        ("[::1]", 200), ("[::1]:80", 200), ("localhost.", 200), ("evil.example", 403),
        ("localhost.evil.example", 403), ("127.0.0.1.evil.example", 403), ("", 403),
        ("evil.example:127.0.0.1", 403), ("192.168.1.5", 403), ("0.0.0.0", 403),
    ],
)  # fmt: skip
def test_a_foreign_name_is_refused(server: Running, host: str, status: int) -> None:
    """A page elsewhere may let its own name point here (DNS rebinding)."""
    with server.http() as http:
        for path in ("/health", "/v1/models", "/"):
            answer = http.get(path, headers={"Host": host})
            assert answer.status_code == status, path
            assert answer.headers["content-security-policy"]


@given(st.text("abc.:[]@/\\ 1é", max_size=20))
def test_no_spelling_of_a_host_passes_for_ours_by_chance(text: str) -> None:
    assert host_of(f"evil{text}") not in LOCAL


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200), ("http://evil.example", 403), ("null", 403), ("http://127.0.0.1:1", 403),
        ("file://", 403), ("http://[", 403),
    ],
)  # fmt: skip
def test_a_page_elsewhere_may_not_ask(server: Running, origin: str | None, status: int) -> None:
    with server.http() as http:
        answer = http.get("/v1/models", headers={"Origin": origin} if origin else {})
        assert answer.status_code == status
        own = http.get("/v1/models", headers={"Origin": server.url})
        assert own.status_code == 200
        assert "access-control-allow-origin" not in own.headers


def test_a_form_of_a_page_elsewhere_is_no_json(server: Running) -> None:
    body = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
    with server.http() as http:
        for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
            headers = {"Content-Type": kind} if kind else {}
            answer = http.post("/v1/completions", content=body, headers=headers)
            assert answer.status_code == 415
            assert "application/json" in answer.json()["error"]["message"]


@pytest.fixture(scope="module")
def guarded() -> Iterator[Running]:
    """With a key, a page elsewhere that may ask, and small limits."""
    rules = rules_for(
        "127.0.0.1", key=KEY, names=["sparrow.lan"], origins=["http://localhost:3000"]
    )
    limits = Limits(body_bytes=2000, head_bytes=4096, head_seconds=0.5, body_seconds=0.5)
    with running([served("tiny")], rules, limits) as found:
        yield found


def bearer(key: str) -> dict[bytes, bytes]:
    return {b"Authorization": b"Bearer " + key.encode()}


@pytest.mark.parametrize(
    "headers",
    [
        {}, bearer("wrong"), bearer(KEY + "x"), bearer(KEY[:-1]),
        {b"Authorization": KEY.encode()}, {b"Authorization": b"Bearer"},
        {b"Authorization": b"Basic " + KEY.encode()},
        {b"Authorization": b"Bearer \xff\xfe"},
    ],
    ids=str,
)  # fmt: skip
def test_without_the_key_nothing_is_told(guarded: Running, headers: dict[bytes, bytes]) -> None:
    with guarded.http() as http:
        for method, path in (
            ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/openapi.json"),
            ("POST", "/v1/completions"), ("GET", "/nowhere"),
        ):  # fmt: skip
            answer = http.request(method, path, headers=headers)  # pyright: ignore
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == "Bearer"
        assert http.get("/health").status_code == 200
        assert http.get("/").status_code == 200


def test_the_client_with_the_key_is_answered(guarded: Running) -> None:
    with guarded.http() as http:
        assert http.get("/v1/models", headers=bearer(KEY)).status_code == 200  # pyright: ignore
    with pytest.raises(openai.AuthenticationError):
        guarded.client(api_key="wrong").models.list()


def test_a_plain_key_works_by_the_client() -> None:
    with running([served("tiny")], Rules(key="secret")) as server:
        assert server.client(api_key="secret").models.list().data


def test_a_named_page_may_ask_and_asks_first(guarded: Running) -> None:
    ask = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    with guarded.http() as http:
        there = http.options("/v1/completions", headers={"Origin": "http://localhost:3000", **ask})
        assert there.status_code == 200
        assert there.headers["access-control-allow-origin"] == "http://localhost:3000"
        other = http.options("/v1/completions", headers={"Origin": "http://evil.example", **ask})
        assert other.status_code == 403
        assert "access-control-allow-origin" not in other.headers
        assert http.get("/health", headers={"Host": "sparrow.lan"}).status_code == 200


@pytest.mark.parametrize(
    ("host", "options", "fine"),
    [
        ("127.0.0.1", {}, True), ("localhost", {}, True), ("::1", {}, True),
        ("127.8.8.8", {}, True), ("0.0.0.0", {}, False), ("::", {}, False),
        ("192.168.1.5", {}, False), ("sparrow.lan", {}, False),
        ("127.0.0.1.evil.example", {}, False), ("0.0.0.0", {"key": "x"}, True),
        ("0.0.0.0", {"open_to_all": True}, True), ("127.0.0.1", {"origins": ["evil"]}, False),
        ("127.0.0.1", {"origins": ["http://a/b"]}, False), ("127.0.0.1", {"origins": ["*"]}, True),
    ],
)  # fmt: skip
def test_an_address_that_others_reach_needs_a_key(
    host: str, options: dict[str, Any], fine: bool
) -> None:
    if fine:
        rules_for(host, **options)
    else:
        with pytest.raises(ConfigError):
            rules_for(host, **options)


def test_on_all_addresses_any_address_is_a_name_of_ours() -> None:
    with (
        running([served("tiny")], rules_for("0.0.0.0", key="k")) as server,
        server.http(headers={"Authorization": "Bearer k"}) as http,
    ):
        for host, status in (("10.1.2.3:80", 200), ("[fe80::1]", 200), ("evil.example", 403)):
            assert http.get("/v1/models", headers={"Host": host}).status_code == status


def test_a_body_too_long_is_413_told_beforehand_or_not(guarded: Running) -> None:
    long = json.dumps({"prompt": "a" * 3000}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    encoded = {name.encode(): value.encode() for name, value in headers.items()}
    with guarded.http(headers=encoded) as http:
        told = http.post("/v1/completions", content=long)
        chunked = http.post("/v1/completions", content=iter([long[:1500], long[1500:]]))
        for answer in (told, chunked):
            assert answer.status_code == 413
            assert "2,000 bytes" in answer.json()["error"]["message"]
        assert http.get("/v1/models").status_code == 200  # the connection is whole


class Wire:
    """A connection, byte by byte."""

    def __init__(self, server: Running, receive_buffer: int = 0) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(10)
        self.socket.connect(("127.0.0.1", server.port))

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, text: str) -> None:
        self.socket.sendall(text.encode())

    def rest(self) -> bytes:
        """All that comes, up to the end of the connection."""
        found = b""
        try:
            while part := self.socket.recv(65536):
                found += part
        except ConnectionResetError:
            pass
        return found


def test_headers_too_long_are_refused(guarded: Running) -> None:
    with Wire(guarded) as wire:
        wire.send("GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + "x" * 70_000)
        assert wire.rest().startswith(b"HTTP/1.1 400")


def test_headers_that_do_not_come_end_the_connection(guarded: Running) -> None:
    for beginning in ("", "GET /health HTTP/1.1\r\nHost: localh"):
        began = time.monotonic()
        with Wire(guarded) as wire:
            wire.send(beginning)
            assert wire.rest() == b""
        assert 0.3 < time.monotonic() - began < 5
    # Nor do those of a second request, behind one that was answered.
    with Wire(guarded) as wire:
        wire.send("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /heal")
        assert wire.rest().count(b"HTTP/1.1") == 1


def test_a_body_that_does_not_come_is_408(guarded: Running) -> None:
    with Wire(guarded) as wire:
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        )
        wire.send(f"{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{")
        assert wire.rest().startswith(b"HTTP/1.1 408")


def test_one_connection_too_many_is_told_so() -> None:
    with running([served("tiny")], limits=Limits(connections=8)) as server:
        waiting = [Wire(server) for _ in range(8)]
        assert until(lambda: len(server.server.server_state.connections) == 8)
        with Wire(server) as wire:
            answer = wire.rest()
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"Retry-After: 1" in answer
        for one in waiting:
            one.socket.close()
        assert until(lambda: not server.server.server_state.connections)
        with server.http() as http:
            assert http.get("/health").status_code == 200


def test_a_full_queue_is_429_with_a_time_to_come_back(scene: Scene) -> None:
    model, script = scripted("slow", context=4096)
    script.seconds = 0.002
    with running([model], limits=Limits(queue=1), slots=1) as server:
        client = server.client()
        streams = [
            client.chat.completions.create(model="slow", messages=HELLO, stream=True)
            for _ in range(2)
        ]
        with pytest.raises(openai.RateLimitError, match="queue is full") as caught:
            client.chat.completions.create(model="slow", messages=HELLO)
        assert caught.value.response.headers["retry-after"] == "1"
        with server.http() as http:
            assert http.get("/health").json()["waiting"] == 1
        for stream in streams:
            stream.close()
        service = server.server.service
        assert until(lambda: not service.under_way and not service.active + service.waiting)
        said = client.chat.completions.create(model="slow", messages=HELLO, max_tokens=2)
        assert said.choices[0].message.content == "aa"
        with pytest.raises(openai.BadRequestError, match="room for 2"):
            client.chat.completions.create(model="slow", messages=HELLO, n=3)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot_within_a_round(stream: bool) -> None:
    model, script = scripted("slow", context=4096)
    script.seconds = 0.05
    with running([model], slots=1) as server:
        body = {"messages": HELLO, "stream": stream}
        text = json.dumps(body)
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
        with Wire(server) as wire:
            wire.send(head + text)
            assert until(lambda: server.server.service.active == 1)
        left = time.monotonic()
        assert until(lambda: not server.server.service.active)
        assert time.monotonic() - left < 5  # of an answer of 200 seconds
        assert server.server.service.under_way == 0


def slow_reader(server: Running) -> Wire:
    """Asks for a long stream with long chunks, and has little room for them."""
    body = json.dumps({"messages": HELLO, "stream": True, "logprobs": True, "top_logprobs": 20})
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    wire = Wire(server, receive_buffer=4096)
    wire.send(head + body)
    assert until(lambda: server.server.service.active == 1)
    return wire


def test_a_reader_that_takes_nothing_is_cut_off() -> None:
    model, _ = scripted("fast", context=8192)
    limits = Limits(stall_seconds=0.2)
    with running([model], limits=limits, send_buffer=4096) as server:
        with slow_reader(server):
            service = server.server.service
            assert until(lambda: not service.under_way and not service.active, 30)
            assert until(lambda: not server.server.server_state.connections)
        written = service.metrics.registry.get_sample_value(
            "sparrow_completion_tokens_total", {"model": "fast"}
        )
        assert written is not None
        assert written < 8000, "the answer was whole before the reader was cut off"


def test_a_stream_read_too_slowly_ends_with_a_fault() -> None:
    """Pieces that wait for a reader are counted."""
    model, _ = scripted("fast", context=8192)
    with running([model], limits=Limits(pieces=50), send_buffer=4096) as server:
        with slow_reader(server) as wire:
            assert until(lambda: not server.server.service.under_way, 30)
            found = b""
            while b"slow_reader" not in found:
                part = wire.socket.recv(1 << 16)
                assert part, "the end without a word"
                found += part
        assert b"[DONE]" not in found


def test_a_port_that_is_taken_is_told() -> None:
    from sparrowlm.errors import EnvironmentFault

    with listen("127.0.0.1", 0) as waiting:
        port = waiting.getsockname()[1]
        with pytest.raises(EnvironmentFault, match="--port"):
            listen("127.0.0.1", port)
    for host, port in (("no.such.host.invalid", 0), ("127.0.0.1", 70_000)):
        with pytest.raises(EnvironmentFault):
            listen(host, port)


def test_pieces_reach_the_client_one_by_one(scene: Scene) -> None:
    """A stream is no answer in one go."""
    scene.say("a", HELLO)
    scene.script.seconds = 0.03
    with scene.running.http() as http:
        body = {"messages": HELLO, "stream": True, "max_tokens": 5}
        with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            times = [time.monotonic() for _ in answer.iter_lines()]
    assert times[-1] - times[0] > 0.06
    assert isinstance(answer, httpx.Response)
