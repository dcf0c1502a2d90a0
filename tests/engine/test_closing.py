"""A closed engine has given its memory back, and says that it is closed."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable

import pytest

from engine import AsyncEngine, Engine, SamplingParams, SteerError

PROMPT = "47+36*37-15?\n\n"
PARAMS = SamplingParams(max_tokens=30)


def test_closing_frees_weights_and_arena():
    """At once, with requests in every state."""
    engine = Engine("tiny")
    for _ in range(3):
        engine.submit(PROMPT, PARAMS, "steer")
    engine.step()
    stream = engine.stream(PROMPT, PARAMS, "steer")
    next(stream)
    held = [weakref.ref(lane.runner.decoder.embedding) for lane in engine.lanes]
    held += [weakref.ref(engine.arena), weakref.ref(engine.scheduler)]
    assert all(each() is not None for each in held)
    engine.close()
    with pytest.raises(SteerError, match="the engine is closed"):
        list(stream)
    del stream
    assert [each() for each in held] == [None] * 4
    engine.close()


CALLS: dict[str, Callable[[Engine], object]] = {
    "generate": lambda engine: engine.generate([PROMPT]),
    "stream": lambda engine: next(engine.stream(PROMPT)),
    "submit": lambda engine: engine.submit(PROMPT),
    "submit_samples": lambda engine: engine.submit_samples(PROMPT),
    "step": lambda engine: engine.step(),
    "abort": lambda engine: engine.abort(1),
    "is_live": lambda engine: engine.is_live(1),
    "warm_up": lambda engine: engine.warm_up(),
    "executed": lambda engine: engine.executed,
    "graph_counts": lambda engine: engine.graph_counts,
    "scheduler": lambda engine: engine.scheduler,
    "await generate": lambda engine: asyncio.run(AsyncEngine(engine).generate(PROMPT)),
}


@pytest.fixture(scope="module")
def closed() -> Engine:
    with Engine("tiny") as engine:
        assert engine.generate([PROMPT], PARAMS)[0].finish_reason == "stop"
    return engine


@pytest.mark.parametrize("call", CALLS)
def test_later_calls_say_that_it_is_closed(closed: Engine, call: str):
    with pytest.raises(SteerError, match=r"^the engine is closed; make a new one$"):
        CALLS[call](closed)


def test_what_needs_no_models_stays(closed: Engine):
    assert closed.tokenizer.encode("1+1")
    assert repr(closed).startswith("Engine('tiny-")
    with pytest.raises(AttributeError, match="'Engine' object has no attribute 'motor'"):
        _ = closed.motor


def test_with_closes_after_an_error():
    with pytest.raises(SteerError, match="the prompt is empty"), Engine("tiny") as engine:
        engine.generate([""])
    with pytest.raises(SteerError, match="closed"):
        engine.generate([PROMPT])
