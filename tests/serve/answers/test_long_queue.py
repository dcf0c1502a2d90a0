"""A thousand requests that wait at once."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from engine import EngineConfig

from .running import Running, running
from .slow_engine import SlowEngine
from .test_causes import counted

PATH = "/v1/completions"
LONG = {"prompt": "47+36?\n\n", "max_tokens": 240, "ignore_eos": True, "model": "small"}
SHORT = json.dumps({"prompt": "1+2?\n\n", "max_tokens": 1, "model": "small"}).encode()
REQUEST = (
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(SHORT), SHORT)
)


@pytest.fixture
def queue() -> Iterator[Running]:
    config = EngineConfig(max_waiting=1000, max_sequences=4)
    with running(SlowEngine("tiny", config=config)) as server:
        yield server
        server.engine.pause = 0.0


async def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


def test_a_thousand_wait_and_none_is_lost(queue: Running):
    """One more is refused at once; one that leaves makes room for it."""
    engine, port = queue.engine, int(queue.url.rpartition(":")[2])

    def waiting(count: int) -> Callable[[], bool]:
        return lambda: engine.scheduler.waiting == count

    async def ask() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST)
        return reader, writer

    async def answer(reader: asyncio.StreamReader) -> bytes:
        return await reader.read()  # to the end of the connection

    async def main() -> Counter[bytes]:
        engine.pause = 0.1
        holders = asyncio.create_task(
            asyncio.to_thread(queue.client.post, PATH, json={**LONG, "n": 4, "request_id": "hold"})
        )
        await until(lambda: engine.scheduler.running == 4)
        opened = await asyncio.gather(*(ask() for _ in range(1000)))
        await until(waiting(1000))
        began = time.monotonic()
        reader, _ = await ask()
        refused = await answer(reader)
        assert refused.startswith(b"HTTP/1.1 429") and b"\r\nretry-after: 1\r\n" in refused
        assert time.monotonic() - began < 1
        opened.pop(500)[1].close()
        await until(waiting(999))
        opened.append(await ask())
        await until(waiting(1000))
        engine.pause = 0.0
        await asyncio.to_thread(queue.post, "/abort_request", rid="hold")
        answers = await asyncio.gather(*(answer(reader) for reader, _ in opened))
        assert (await holders).status_code == 200
        return Counter(each[:12] for each in answers if b'"finish_reason":"length"' in each)

    assert asyncio.run(asyncio.wait_for(main(), 120)) == {b"HTTP/1.1 200": 1000}
    assert counted(queue) == {"client": 1, "request": 4}
    metrics = queue.service.metrics
    assert metrics and metrics.registry.get_sample_value("steer_queue_rejections_total") == 1
