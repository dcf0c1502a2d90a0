"""What fails in the engine: one request's numbers, a forward pass, the thread that drives it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
import torch

from bench.tasks import arithmetic
from engine import EngineConfig
from engine.serve import operations

from .running import Running, frames_of, running
from .slow_engine import SlowEngine
from .test_causes import counted, is_stopping, rest
from .test_endings import ASKED, CHAT, live, stream

PATH = "/v1/completions"
PROMPTS = [p.prompt for p in arithmetic.problems("test", 6, seed=21)]


@pytest.fixture
def tiny() -> Iterator[Running]:
    with running(SlowEngine("tiny", config=EngineConfig(check_every=1)), policy="small") as server:
        yield server
        server.engine.pause = 0.0


def in_its_thread(server: Running, function: Callable[[], object]) -> None:
    """Between two steps of the engine."""
    server.service.served._thread.call(function).result(10)


def poison(server: Running, identity: str) -> None:
    """Writes a NaN over a key of a request that runs: its next logits are no numbers."""
    engine = server.engine
    (request,) = server.service.open[f"cmpl-{identity}"][0].requests
    plan = engine.scheduler.buffers(0)
    block = plan.blocks[plan.ids.tolist().index(request), :1].tolist()
    layout = engine.arena.layout(engine.shapes[0], 0, engine.config.block_tokens)
    engine.arena.rows(engine.shapes[0])[layout.first_row(torch.tensor(block))] = float("nan")


def asked(index: int, **more: Any) -> dict[str, Any]:
    return {"prompt": PROMPTS[index], "max_tokens": 60, "temperature": 0, **more}


def is_final_error(response: httpx2.Response) -> bool:
    """A 500 that is not worth another try."""
    assert response.status_code == 500, response.text
    assert response.json()["error"]["type"] == "server_error"
    return response.headers["x-should-retry"] == "false"


def test_a_request_with_unusable_logits_ends_alone(tiny: Running):
    """As a whole answer and as a stream; its neighbours do not notice, nor does who asks again."""
    expected = [tiny.post(PATH, **asked(i))["choices"][0]["text"] for i in range(4)]
    tiny.engine.pause = 0.01
    with ThreadPoolExecutor(4) as pool:
        kinds: list[dict[str, Any]] = [{}, {}, {"stream": True}, {}]
        sent: list[Future[httpx2.Response]] = [
            pool.submit(tiny.client.post, PATH, json=asked(i, request_id=f"r{i}", **more))
            for i, more in enumerate(kinds)
        ]
        assert live(tiny, 4)
        for name in ("r1", "r2"):
            in_its_thread(tiny, lambda name=name: poison(tiny, name))  # type: ignore[misc]
        assert tiny.client.get("/health").status_code == 200
        first, second, third, last = (each.result() for each in sent)
    tiny.engine.pause = 0.0
    assert is_final_error(second) and "logits" in second.json()["error"]["message"]
    *chunks, error = frames_of(third.content)
    assert error["error"]["type"] == "server_error"
    assert not any(c["finish_reason"] for chunk in chunks for c in chunk["choices"])
    assert first.json()["choices"][0]["text"] == expected[0]
    assert last.json()["choices"][0]["text"] == expected[3]
    assert counted(tiny) == {"error": 2}
    assert [tiny.post(PATH, **asked(i))["choices"][0]["text"] for i in range(4)] == expected


@pytest.mark.parametrize("times", [1, 2])
def test_a_forward_pass_that_fails(tiny: Running, monkeypatch: pytest.MonkeyPatch, times: int):
    """Once, it is run again; twice, its requests end and the next one is served."""
    expected = tiny.post(PATH, **asked(0))
    decoder = tiny.engine.lanes[0].runner.decoder
    statistics, failures = decoder.signals, [RuntimeError("secret")] * times

    def failing(*arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return statistics(*arguments)

    monkeypatch.setattr(decoder, "signals", failing)
    response = tiny.client.post(PATH, json=asked(0))
    if times == 1:
        assert response.json()["choices"] == expected["choices"]
    else:
        assert is_final_error(response) and "secret" not in response.text
    assert tiny.post(PATH, **asked(0))["choices"] == expected["choices"]
    assert tiny.client.get("/health").status_code == 200
    assert counted(tiny) == ({"error": 1} if times == 2 else {})


def test_steps_that_fail_for_good_give_the_memory_back(tiny: Running, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(tiny.engine, "step", lambda: 1 / 0)
        assert is_final_error(tiny.client.post(PATH, json=asked(0)))
    tiny.post(PATH, **asked(1, max_tokens=1))
    assert counted(tiny) == {"error": 1}
    assert tiny.engine.snapshot()["tokens"]["small"]["live"] == 0


def test_an_engine_whose_thread_has_ended(slow: Running, monkeypatch: pytest.MonkeyPatch):
    """Running, waiting and half submitted requests end with an error; later ones are refused."""

    def end() -> None:
        time.sleep(0.5)
        raise MemoryError("secret")

    with ThreadPoolExecutor(3) as pool, stream(slow) as lines:
        assert any('"step"' in line for line in lines)  # it runs, and waits no more
        waiting = [pool.submit(slow.client.post, CHAT, json=ASKED) for _ in range(2)]
        assert live(slow, 3)
        monkeypatch.setattr(slow.service.served._thread, "_step", end)
        time.sleep(0.2)
        submitted = pool.submit(slow.client.post, "/v1/completions", json={"prompt": "a"})
        last = rest(lines)[-1]
        assert last["error"]["type"] == "server_error" and "secret" not in json.dumps(last)
        assert all(is_final_error(each.result(10)) for each in waiting)
        assert submitted.result(10).status_code in (429, 503)
    for path in ("/health", "/ready"):
        assert slow.client.get(path).status_code == 503
    assert is_stopping(slow.client.post(CHAT, json=ASKED))
    assert is_stopping(slow.client.post(CHAT, json={**ASKED, "stream": True}))
    assert slow.client.get("/metrics").status_code == 200
    assert counted(slow, alive=False) == {"error": 3}


def test_a_step_that_is_stuck_is_seen_and_forgotten(slow: Running, monkeypatch):
    """The server answers meanwhile: it is the engine that is not well."""
    monkeypatch.setattr(operations, "_ALIVE_SECONDS", 0.3)

    def health() -> int:
        began = time.monotonic()
        status = slow.client.get("/health").status_code
        assert time.monotonic() - began < 1
        return status

    def becomes(status: int) -> bool:
        end = time.monotonic() + 5
        while health() != status:
            assert time.monotonic() < end
            time.sleep(0.02)
        return True

    with stream(slow):
        assert health() == 200
        slow.engine.pause = 1.5
        assert becomes(503)
        slow.engine.pause = 0.01
        assert becomes(200)
    assert counted(slow) == {"client": 1}
