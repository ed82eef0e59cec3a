"""Many clients at once, and many that leave: nothing is dropped and nothing stays."""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import Any

import openai
import pytest

from server_support import Running, running, served, until
from sparrowlm.infer.engine import Request
from sparrowlm.infer.sampling import Sampling

CLIENTS, SECONDS, LEAVERS = 64, 60, 1000
HELLO: list[Any] = [{"role": "user", "content": "hello"}]


def expected(server: Running, seeds: int, tokens: int) -> list[tuple[str, int]]:
    """Text and tokens of each seed's completion, by the engine alone."""
    engine = server.server.service.models["tiny"].engine
    asked = [
        Request(engine.prompt("ab"), Sampling(0.8, 50, seed=seed, max_tokens=tokens))
        for seed in range(seeds)
    ]
    texts, counts = [""] * seeds, [0] * seeds
    for request in range(seeds):
        for piece in engine.stream([asked[request]]):
            texts[request] += piece.text
            counts[request] += 1
    return list(zip(texts, counts, strict=True))


@pytest.mark.slow
def test_64_streams_for_a_minute_and_nothing_is_dropped() -> None:
    with running([served("tiny", chat=False)]) as server:
        right = expected(server, seeds=8, tokens=48)
        until_then = time.monotonic() + SECONDS

        async def talk(client: openai.AsyncOpenAI, number: int) -> int:
            done = 0
            while time.monotonic() < until_then:
                seed = (number + done) % len(right)
                stream = await client.completions.create(
                    model="tiny", prompt="ab", seed=seed, max_tokens=48, stream=True,
                    stream_options={"include_usage": True},
                )  # fmt: skip
                text, counted, finish = "", 0, None
                async for chunk in stream:
                    for choice in chunk.choices:
                        text, finish = text + choice.text, choice.finish_reason
                    counted = chunk.usage.completion_tokens if chunk.usage else counted
                assert (text, counted) == right[seed]
                assert finish in ("length", "stop")
                done += 1
            return done

        async def all_of_them() -> list[int]:
            async with openai.AsyncOpenAI(
                base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60
            ) as client:
                return await asyncio.gather(*(talk(client, at) for at in range(CLIENTS)))

        done = asyncio.run(all_of_them())
        service = server.server.service
        assert min(done) > 0
        assert until(lambda: not service.under_way and not service.active + service.waiting)
        answered = service.metrics.registry.get_sample_value(
            "sparrow_requests_total", {"route": "/v1/completions", "status": "200"}
        )
        assert answered == sum(done)


async def leave(server: Running, chance: random.Random, together: asyncio.Semaphore) -> None:
    """Ask, and be gone: before the body is whole, before the answer, or within it."""
    async with together:
        body = json.dumps(
            {"messages": HELLO, "stream": chance.random() < 0.7, "n": chance.randint(1, 3)}
        )
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        sent = (head + body).encode()
        writer.write(sent if chance.random() < 0.9 else sent[: chance.randrange(len(sent))])
        await writer.drain()
        match chance.randrange(3):
            case 0:
                await asyncio.sleep(chance.random() * 0.02)
            case 1:
                await asyncio.wait_for(reader.read(200), 0.2) if chance.random() < 0.5 else None
            case 2:
                await asyncio.sleep(0)
        writer.transport.abort() if chance.random() < 0.5 else writer.close()


@pytest.mark.slow
def test_1000_clients_that_leave_hold_no_slot() -> None:
    with running([served("tiny", context=512)], slots=8) as server:

        async def all_of_them() -> None:
            chance, together = random.Random(0), asyncio.Semaphore(24)
            went = [leave(server, chance, together) for _ in range(LEAVERS)]
            for result in await asyncio.gather(*went, return_exceptions=True):
                assert result is None or isinstance(result, TimeoutError), result

        asyncio.run(all_of_them())
        service = server.server.service
        assert until(lambda: not server.server.server_state.connections, 30)
        assert until(lambda: not service.under_way and not service.active + service.waiting)
        assert not service._owners
        said = server.client().chat.completions.create(
            model="tiny", messages=HELLO, n=8, max_tokens=4
        )
        assert len(said.choices) == 8
