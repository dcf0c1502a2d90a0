"""How requests end early: clients that go away, deadlines, a full queue, slow readers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest

from engine.serve.sse import PING, EventStream

from .running import Running, frames_of

CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


def aborts(server: Running, cause: str) -> float:
    value = server.service.metrics.registry.get_sample_value("steer_aborts_total", {"cause": cause})
    return value or 0.0


def leave(server: Running, seconds: float, **more: Any) -> None:
    """A client that waits so long for an answer, and closes the connection."""
    with httpx2.Client(base_url=server.url) as client, pytest.raises(httpx2.ReadTimeout):
        client.post(CHAT, json={**ASKED, **more}, timeout=seconds)


@contextmanager
def stream(server: Running, **more: Any) -> Iterator[Iterator[str]]:
    """The lines of a stream, from the role on; at the end of the block the client leaves."""
    body = {**ASKED, "stream": True, **more}
    with server.client.stream("POST", CHAT, json=body) as response:
        lines = response.iter_lines()
        assert '"role":"assistant"' in next(lines)
        yield lines


def live(server: Running, count: int, seconds: float = 5.0) -> bool:
    """Whether so many answers are queued or running, or soon are."""
    end = time.monotonic() + seconds
    while len(server.engine._driver.live) != count and time.monotonic() < end:
        time.sleep(0.01)
    return len(server.engine._driver.live) == count


def test_a_client_that_leaves_a_whole_answer_ends_it(slow: Running):
    began = time.monotonic()
    leave(slow, 0.5)
    assert slow.idle()
    assert time.monotonic() - began < 8, "235 tokens of 50 ms each were to come"
    assert aborts(slow, "client") == 1


def test_a_client_that_leaves_a_stream_ends_it(slow: Running):
    began = time.monotonic()
    with stream(slow):
        pass
    assert slow.idle() and time.monotonic() - began < 8
    assert aborts(slow, "client") == 1


def test_a_client_that_leaves_the_queue_frees_it(slow: Running):
    with stream(slow):
        with stream(slow), stream(slow):
            assert live(slow, 3)
            assert slow.refused(CHAT, 429, **ASKED)["type"] == "rate_limit_error"
        assert live(slow, 1), "the first one goes on"
        leave(slow, 0.5)
        assert live(slow, 1) and len(slow.service.open) == 1
    assert slow.idle()
    registry = slow.service.metrics.registry
    assert registry.get_sample_value("steer_queue_rejections_total") == 1


def test_n_counts_n_in_the_queue(slow: Running):
    with stream(slow), stream(slow):
        assert live(slow, 2)
        assert slow.refused(CHAT, 429, **ASKED, n=2)
        with stream(slow):
            assert live(slow, 3)
    assert slow.idle()


def test_the_prefix_of_one_who_left_is_kept(slow: Running):
    asked = [{"role": "user", "content": "b" * 120}]
    with stream(slow, messages=asked) as lines:
        assert any('"content":"' in line for line in lines)  # the prompt has been computed
    assert slow.idle()
    answer = slow.chat(messages=asked, max_tokens=1)
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 60


def test_the_role_comes_before_the_first_token(slow: Running):
    slow.engine.pause = 3.0
    began = time.monotonic()
    with stream(slow, max_tokens=1):
        assert time.monotonic() - began < 2


def test_a_deadline_is_no_reason_to_try_again(slow: Running):
    response = slow.client.post(CHAT, json={**ASKED, "timeout": 0.2})
    assert response.status_code == 408
    assert response.headers["x-should-retry"] == "false"
    assert response.json()["error"]["type"] == "timeout_error"
    assert slow.idle() and aborts(slow, "deadline") == 1


def test_a_request_is_aborted_by_its_id(slow: Running):
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(slow.chat, request_id="mine")
        assert live(slow, 1)
        error = slow.refused(CHAT, **ASKED, request_id="mine")
        assert error["param"] == "request_id"
        for _ in range(2):  # again, it has no effect
            assert slow.post("/abort_request", rid="mine")["aborted"] <= 1
        (choice,) = asked.result()["choices"]
    assert choice["finish_reason"] == "abort"
    assert slow.idle()


def test_an_engine_that_fails_ends_the_stream(slow: Running, monkeypatch: pytest.MonkeyPatch):
    def fail() -> None:
        raise RuntimeError("secret")

    with stream(slow, n=2) as lines, monkeypatch.context() as patch:
        patch.setattr(slow.engine, "step", fail)
        *_, last = (line for line in lines if line)
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error["type"] == "server_error" and "secret" not in error["message"]
    slow.chat(max_tokens=1)  # the engine ends the aborted answers only when it runs again
    assert slow.idle() and aborts(slow, "error") == 2


class Socket:
    """An ASGI client that takes ``most`` messages and then none; it never goes away."""

    def __init__(self, most: int, delay: float = 0.0) -> None:
        self.most, self.delay = most, delay
        self.bodies: list[bytes] = []

    async def receive(self) -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message: dict[str, Any]) -> None:
        if len(self.bodies) >= self.most:
            await asyncio.Event().wait()
        await asyncio.sleep(self.delay)
        if message["type"] == "http.response.body":
            self.bodies.append(message["body"])


async def call(server: Running, socket: Socket) -> None:
    body = json.dumps({**ASKED, "stream": True, "max_tokens": 100}).encode()
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": CHAT,
        "raw_path": CHAT.encode(),
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    first = True

    async def receive() -> dict[str, Any]:
        nonlocal first
        if not first:
            return await socket.receive()
        first = False
        return {"type": "http.request", "body": body, "more_body": False}

    await server.app(scope, receive, socket.send)


def test_a_client_that_reads_nothing_is_given_up(slow: Running):
    """The socket takes the role and one frame, and then nothing."""
    object.__setattr__(slow.service.settings, "slow_reader_timeout", 0.3)
    socket = Socket(2)
    began = time.monotonic()
    asyncio.run_coroutine_threadsafe(call(slow, socket), slow.loop).result(10)
    assert time.monotonic() - began < 5
    assert len(socket.bodies) == 2 and slow.idle()
    assert aborts(slow, "slow_reader") == 1


def test_a_client_that_reads_slowly_gets_more_at_once(slow: Running):
    slow.engine.pause = 0.002
    socket = Socket(12, delay=0.1)
    object.__setattr__(slow.service.settings, "slow_reader_timeout", 0.3)
    asyncio.run_coroutine_threadsafe(call(slow, socket), slow.loop).result(10)
    tokens = [c for body in socket.bodies for c in frames_of(body) if c != "[DONE]"]
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in tokens)
    assert len(text) > 3 * len(socket.bodies)


def test_a_silent_stream_says_that_it_lives():
    async def frames():
        yield b"data: 1\n\n"
        await asyncio.sleep(0.35)
        yield b"data: 2\n\n"

    ended: list[str] = []
    socket = Socket(100)

    async def main() -> None:
        stream = EventStream(frames(), ended.append, 1.0, silence=0.1)
        await stream({"type": "http"}, socket.receive, socket.send)

    asyncio.run(main())
    assert socket.bodies[0] == b"data: 1\n\n" and socket.bodies[-2:] == [b"data: 2\n\n", b""]
    assert set(socket.bodies[1:-2]) == {PING} and len(socket.bodies) >= 5
    assert len(ended) == 1


def test_a_long_prompt_stops_no_other_request(tiny: Running):
    def tokenise() -> float:
        began = time.perf_counter()
        assert tiny.post("/tokenize", prompt="1+2" * 200_000)["count"] == 600_000
        return time.perf_counter() - began

    waits = []
    with ThreadPoolExecutor(1) as pool:
        tokenised = pool.submit(tokenise)
        while not tokenised.done():
            began = time.perf_counter()
            assert tiny.client.get("/health").status_code == 200
            waits.append(time.perf_counter() - began)
            time.sleep(0.01)
    assert len(waits) > 5 and max(waits) < tokenised.result() / 3
