"""What ends answers early: the error that their clients see, and the cause that is counted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from engine.serve.metrics import ABORTS

from .running import Running, frames_of
from .test_endings import ASKED, CHAT, aborts, leave, live, stream


def rest(lines: Iterator[str]) -> list[Any]:
    """The frames of a stream up to its end."""
    return frames_of("\n".join(lines).strip("\n").encode())


def counted(server: Running, alive: bool = True) -> dict[str, float]:
    """Aborts by cause, without those that are 0; every answer that began has ended."""
    registry = server.service.metrics.registry
    started = registry.get_sample_value("steer_requests_started_total")
    assert server.idle() if alive else not server.service.open
    reasons = [
        sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "steer_requests_finished_total"
    ]
    assert sum(reasons) == started
    found = {cause: aborts(server, cause) for cause in ABORTS}
    return {cause: count for cause, count in found.items() if count}


def drain(server: Running, seconds: float) -> bool:
    waited = server.service.served.drain(seconds)
    return asyncio.run_coroutine_threadsafe(waited, server.loop).result(30)


def is_stopping(response: httpx2.Response) -> bool:
    """A 503 that says when to come again."""
    assert response.status_code == 503, response.text
    error = response.json()["error"]
    assert error["type"] == "server_error" and error["code"] == "server_is_overloaded"
    assert "x-should-retry" not in response.headers
    return int(response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("more", [{}, {"stream": True}])
def test_a_request_that_was_let_in_before_the_end_began(slow: Running, more: dict):
    """The gate was still open; the engine is not."""
    assert drain(slow, 0)
    assert is_stopping(slow.client.post(CHAT, json={**ASKED, **more}))
    assert is_stopping(slow.client.post("/tokenize", json={"prompt": "a"}))
    assert counted(slow) == {}


def test_a_stream_that_the_end_cuts_off(slow: Running):
    with stream(slow, n=2) as lines:
        assert live(slow, 2)
        assert not drain(slow, 0.1)
        *chunks, last = rest(lines)
    assert last["error"]["type"] == "server_error" and "stopping" in last["error"]["message"]
    assert not any(c["finish_reason"] for chunk in chunks for c in chunk["choices"])
    assert counted(slow) == {"drain": 2}


def test_a_whole_answer_that_the_end_cuts_off(slow: Running):
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(slow.client.post, CHAT, json=ASKED)
        assert live(slow, 1)
        assert not drain(slow, 0.1)
        assert is_stopping(asked.result())
    assert counted(slow) == {"drain": 1}


def test_an_answer_that_is_aborted_by_its_id_ends_as_it_is(slow: Running):
    """It is no error, whole or as a stream."""

    def abort() -> None:
        answer = slow.post("/abort_request", rid="mine")
        assert answer == {"aborted": 1}

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(slow.chat, request_id="mine")
        assert live(slow, 1)
        abort()
        assert asked.result()["choices"][0]["finish_reason"] == "abort"
    with stream(slow, request_id="mine") as lines:
        abort()
        *_, last, done = rest(lines)
    assert last["choices"][0]["finish_reason"] == "abort" and done == "[DONE]"
    assert counted(slow) == {"request": 2}


def test_other_causes(slow: Running):
    leave(slow, 0.3)
    assert slow.client.post(CHAT, json={**ASKED, "timeout": 0.2, "n": 2}).status_code == 408
    assert frames_of(slow.raw(CHAT, **ASKED, timeout=0.2, n=2))[-1]["error"]
    assert slow.chat(max_tokens=1)["choices"][0]["finish_reason"] == "length"
    assert counted(slow) == {"client": 1, "deadline": 4}


def test_a_policy_that_raises_is_an_error(slow: Running, monkeypatch: pytest.MonkeyPatch):
    """Of its own request; the message is not its."""

    def broken(boundary: object) -> str:
        raise ValueError("secret")

    name = "random:0.25"
    monkeypatch.setitem(slow.service.routes._made, name, slow.engine.policy(broken))
    response = slow.client.post(CHAT, json={**ASKED, "routing": {"policy": name}})
    assert response.status_code == 500 and response.headers["x-should-retry"] == "false"
    assert "secret" not in json.dumps(response.json())
    assert counted(slow) == {"error": 1}
