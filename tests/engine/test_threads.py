"""One engine and several threads: one at a time, and the second one is told so."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from bench.tasks import arithmetic
from engine import (
    AsyncEngine,
    Boundary,
    Completion,
    Engine,
    EngineConfig,
    SamplingParams,
    SteerError,
)

PARAMS = SamplingParams(max_tokens=80)
PROMPTS = [p.prompt for p in arithmetic.problems("test", 4, seed=7)]
REFUSAL = "an engine is driven by one thread at a time; use AsyncEngine or a lock"
SECONDS = 60


@pytest.fixture
def engine() -> Engine:
    return Engine("tiny", config=EngineConfig(check_every=1))


@contextmanager
def another_thread(engine: Engine) -> Iterator[Callable[[], list[Completion]]]:
    """Another thread is in generate() until the function that this gives is called."""
    inside, go_on = threading.Event(), threading.Event()

    def policy(boundary: Boundary) -> str:
        inside.set()
        assert go_on.wait(SECONDS)
        return "small"

    def enter() -> list[Completion]:
        while True:  # an AsyncEngine may be in a step just now
            try:
                return engine.generate(PROMPTS[:1], PARAMS, policy)
            except SteerError as error:
                if str(error) != REFUSAL:
                    raise
                time.sleep(1e-3)

    def finish() -> list[Completion]:
        go_on.set()
        return answers.result(SECONDS)

    with ThreadPoolExecutor(1) as pool:
        answers: Future[list[Completion]] = pool.submit(enter)
        try:
            assert inside.wait(SECONDS)
            yield finish
        finally:
            go_on.set()


CALLS: dict[str, Callable[[Engine], object]] = {
    "generate": lambda engine: engine.generate(PROMPTS[1:], PARAMS),
    "step": lambda engine: engine.step(),
    "submit": lambda engine: engine.submit(PROMPTS[1], PARAMS),
    "submit_samples": lambda engine: engine.submit_samples(PROMPTS[1], PARAMS),
    "stream": lambda engine: next(iter(engine.stream(PROMPTS[1], PARAMS))),
    "warm_up": lambda engine: engine.warm_up(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_second_thread_is_refused_and_the_first_is_right(
    engine: Engine, call: Callable[[Engine], object]
):
    expected = [c.text for c in engine.generate(PROMPTS, PARAMS, "small")]
    with another_thread(engine) as finish:
        with pytest.raises(SteerError) as refusal:
            call(engine)
        assert str(refusal.value) == REFUSAL
        assert [c.text for c in finish()] == expected[:1]
    assert [c.text for c in engine.generate(PROMPTS, PARAMS, "small")] == expected


def test_a_refused_stream_goes_no_further_and_leaves_nothing(engine: Engine):
    stream = engine.stream(PROMPTS[1], PARAMS, "small")
    next(stream)
    with another_thread(engine) as finish:
        with pytest.raises(SteerError, match=REFUSAL):
            list(stream)
        finish()
    assert engine.scheduler.running == 0 and engine.scheduler.waiting == 0


def test_a_suspended_stream_is_not_inside(engine: Engine):
    expected = [c.text for c in engine.generate(PROMPTS, PARAMS, "small")]
    stream = engine.stream(PROMPTS[0], PARAMS, "small")
    events = [next(stream)]
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(engine.generate, PROMPTS[1:], PARAMS, "small").result(SECONDS)
    events += stream
    assert [c.text for c in answers] == expected[1:]
    assert "".join(event.text for event in events) == expected[0]


def test_abort_and_close_of_another_thread_wait_for_the_first(engine: Engine):
    expected = engine.generate(PROMPTS[:1], PARAMS, "small")[0].text
    request = engine.submit(PROMPTS[1], PARAMS, "large")
    stream = engine.stream(PROMPTS[2], PARAMS, "large")
    next(stream)
    with another_thread(engine) as finish:
        engine.abort(request)
        stream.close()  # type: ignore[attr-defined]
        assert engine.is_live(request)
        assert finish()[0].text == expected
    done = engine.step()
    assert [(c.request_id, c.finish_reason) for c in done] == [(request, "abort")]
    assert engine.scheduler.running == 0 and engine.scheduler.waiting == 0


def test_threads_may_take_turns(engine: Engine):
    expected = [c.text for c in engine.generate(PROMPTS, PARAMS, "small")]
    lock = threading.Lock()

    def one(prompt: str) -> str:
        with lock:
            return engine.generate([prompt], PARAMS, "small")[0].text

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, PROMPTS)) == expected


def test_a_policy_may_call_its_own_engine(engine: Engine):
    """It is the thread inside that calls."""

    def policy(boundary: Boundary) -> str:
        engine.abort(boundary.request)
        return "small"

    (answer,) = engine.generate(PROMPTS[:1], PARAMS, policy)
    assert answer.finish_reason == "abort"


def test_an_async_engine_waits_for_a_thread_that_is_inside(engine: Engine):
    expected = [c.text for c in engine.generate(PROMPTS, PARAMS, "small")]

    async def main() -> tuple[str, str]:
        async with AsyncEngine(engine) as served:
            events = served.stream(PROMPTS[0], PARAMS, "small")
            text = (await anext(events)).text
            with another_thread(engine) as finish:
                other = asyncio.create_task(served.generate(PROMPTS[1], PARAMS, "small"))
                await asyncio.sleep(0.1)
                assert not other.done()
                finish()
            text += "".join([event.text async for event in events])
            return text, (await other).text

    assert asyncio.run(main()) == tuple(expected[:2])
