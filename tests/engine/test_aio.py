"""The asyncio face: many coroutines, one engine."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from bench.tasks import arithmetic
from engine import (
    AsyncEngine,
    Boundary,
    Engine,
    EngineConfig,
    SamplingParams,
    SteerError,
    UnavailableError,
)
from engine.aio import Answers
from engine.aio.engine_thread import EngineThread

PARAMS = SamplingParams(max_tokens=80)
PROMPTS = [p.prompt for p in arithmetic.problems("test", 12, seed=7)]
POLICY = "threshold:max_prob:0.9"


@pytest.fixture
def engine() -> Engine:
    return Engine("tiny", config=EngineConfig(check_every=1))


def test_coroutines_run_as_one_batch(engine: Engine):
    expected = [c.text for c in engine.generate(PROMPTS, PARAMS, POLICY)]
    before = engine.scheduler.counters()["ticks"][0]

    async def main() -> list[str]:
        async with AsyncEngine(engine) as served:
            answers = await asyncio.gather(*(served.generate(p, PARAMS, POLICY) for p in PROMPTS))
        return [a.text for a in answers]

    assert asyncio.run(main()) == expected
    ticks = engine.scheduler.counters()["ticks"][0] - before
    assert ticks < sum(len(t) for t in expected) / 4, "the requests ran one after the other"


def test_a_stream_joins_to_the_text(engine: Engine):
    async def main() -> None:
        async with AsyncEngine(engine) as served:
            events = [e async for e in served.stream(PROMPTS[0], PARAMS, POLICY)]
        completion = events[-1].completion
        assert completion is not None and len(events) > 10
        assert "".join(e.text for e in events) == completion.text
        assert [e.model for e in events if e.kind == "step"] == [s.model for s in completion.steps]

    asyncio.run(main())


def test_cancellation_ends_the_request_and_no_other(engine: Engine):
    expected = engine.generate(PROMPTS[:1], PARAMS, POLICY)[0].text

    async def main() -> str:
        async with AsyncEngine(engine) as served:
            kept = asyncio.create_task(served.generate(PROMPTS[0], PARAMS, POLICY))
            dropped = asyncio.create_task(served.generate(PROMPTS[1], PARAMS, POLICY))
            await asyncio.sleep(0)
            dropped.cancel()
            with pytest.raises(asyncio.CancelledError):
                await dropped
            return (await kept).text

    assert asyncio.run(main()) == expected
    assert engine.scheduler.running == engine.scheduler.waiting == 0
    engine.scheduler.check_integrity()


def test_cancellation_at_any_moment_leaves_nothing_behind(engine: Engine):
    """After so many turns of the loop, from before the request is queued to its end."""

    async def main() -> None:
        async with AsyncEngine(engine) as served:
            for turns in range(40):
                task = asyncio.create_task(served.generate(PROMPTS[0], PARAMS, POLICY))
                for _ in range(turns):
                    await asyncio.sleep(0.0005 * (turns > 10))
                task.cancel()
                await asyncio.wait([task])

    asyncio.run(main())
    assert engine.scheduler.running == engine.scheduler.waiting == 0
    engine.scheduler.check_integrity()


def test_short_answers_are_never_missed(engine: Engine):
    """A request of one token may be over in the very step after it was queued."""

    async def main() -> list[str]:
        short = SamplingParams(max_tokens=1)
        async with AsyncEngine(engine) as served:

            async def some(count: int) -> list[str]:
                return [
                    (await served.generate(p, short, "small")).finish_reason
                    for p in PROMPTS[:count]
                ]

            answers = await asyncio.gather(*(some(n) for n in range(1, 9)))
            return [reason for reasons in answers for reason in reasons]

    assert asyncio.run(asyncio.wait_for(main(), 60)) == ["length"] * 36


def test_closing_ends_what_runs(engine: Engine):
    async def main() -> str:
        served = AsyncEngine(engine)
        task = asyncio.create_task(served.generate(PROMPTS[0], PARAMS, POLICY))
        while not engine.scheduler.running:
            await asyncio.sleep(0.001)
        await served.aclose()
        return (await task).finish_reason

    assert asyncio.run(main()) in ("abort", "stop")
    assert engine.generate(PROMPTS[:1], PARAMS, POLICY)[0].finish_reason == "stop"


def test_closing_ends_what_is_being_submitted(engine: Engine):
    """Nothing is left behind in the engine, and later callers hear of it."""

    async def main() -> str:
        served = AsyncEngine(engine)
        task = asyncio.create_task(served.generate(PROMPTS[0], PARAMS, POLICY))
        await asyncio.sleep(0)
        await served.aclose()
        await served.aclose()
        with pytest.raises(SteerError, match="the AsyncEngine is closed"):
            await served.generate(PROMPTS[0], PARAMS, POLICY)
        return (await task).finish_reason

    assert asyncio.run(asyncio.wait_for(main(), 60)) == "abort"
    assert engine.scheduler.running + engine.scheduler.waiting == 0


def test_errors_reach_their_caller(engine: Engine, caplog: pytest.LogCaptureFixture):
    """A refused request raises; a policy that raises aborts its own request."""

    def broken(boundary: Boundary) -> str:
        raise ZeroDivisionError

    async def main() -> list[str]:
        async with AsyncEngine(engine) as served:
            with pytest.raises(SteerError, match="the prompt is empty"):
                await served.generate("", PARAMS)
            answers = await asyncio.gather(
                served.generate(PROMPTS[0], PARAMS, broken),
                served.generate(PROMPTS[1], PARAMS, POLICY),
            )
        return [a.finish_reason for a in answers]

    with caplog.at_level(logging.ERROR):
        assert asyncio.run(main()) == ["abort", "stop"]
    assert "ZeroDivisionError" in caplog.text


def test_a_neighbour_that_finishes_in_the_tick_of_an_error(engine: Engine):
    """Its completion is not lost with the exception."""

    def broken(boundary: Boundary) -> str:
        raise ZeroDivisionError

    async def main() -> list[str]:
        short = SamplingParams(max_tokens=1)
        async with AsyncEngine(engine) as served:
            answers = await asyncio.gather(
                *(served.generate(PROMPTS[0], short, p) for p in ("small", broken) * 3)
            )
        return [a.finish_reason for a in answers]

    assert asyncio.run(asyncio.wait_for(main(), 60)) == ["length", "abort"] * 3


def test_an_engine_that_fails_for_good_tells_its_callers(engine: Engine, monkeypatch):
    """Their requests end with the reason; nothing spins."""
    monkeypatch.setattr(engine.lanes[0].runner.decoder, "signals", lambda *_: 1 / 0)

    async def main() -> list[str]:
        async with AsyncEngine(engine) as served:
            answers = await asyncio.gather(
                *(served.generate(p, PARAMS, "small") for p in PROMPTS[:3])
            )
        return [a.finish_reason for a in answers]

    assert asyncio.run(asyncio.wait_for(main(), 60)) == ["error"] * 3


def test_a_thread_that_ends_leaves_no_caller_waiting(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    """Open requests raise, also one that is being submitted; later ones are refused."""

    began, asked = threading.Event(), threading.Event()

    def end(self: EngineThread) -> None:
        began.set()
        asked.wait(20)
        raise MemoryError

    async def main() -> None:
        async with AsyncEngine(engine) as served:
            await served.generate(PROMPTS[0], PARAMS, "small")
            assert served.alive()
            monkeypatch.setattr(EngineThread, "_step", end)
            first = asyncio.create_task(served.generate(PROMPTS[0], PARAMS, "small"))
            await asyncio.to_thread(began.wait, 20)
            second = asyncio.create_task(served.generate(PROMPTS[1], PARAMS, "small"))
            await asyncio.sleep(0.05)
            asked.set()
            found = await asyncio.gather(first, second, return_exceptions=True)
            assert isinstance(found[0], RuntimeError) and isinstance(found[1], UnavailableError)
            assert not served.alive()
            with pytest.raises(UnavailableError, match="has failed"):
                await served.generate(PROMPTS[0], PARAMS, "small")
            assert await served.drain(1)

    asyncio.run(asyncio.wait_for(main(), 30))


def test_what_an_answer_was_aborted_for(engine: Engine):
    """The first cause stays; one that has ended by itself has none."""

    async def main() -> list[str | None]:
        async with AsyncEngine(engine) as served:
            long = SamplingParams(max_tokens=200, ignore_eos=True)
            answers = [await served.submit(p, long, "small") for p in PROMPTS[:3]]
            reading = [asyncio.create_task(_read(each)) for each in answers]
            answers[0].abort("mine")
            answers[1].abort()
            await asyncio.sleep(0)
            assert not await served.drain(0.01)
            await asyncio.gather(*reading)
            answers[1].abort("late")
            return [each.cause for each in answers]

    async def _read(answers: Answers) -> None:
        async for _ in answers:
            pass

    assert asyncio.run(asyncio.wait_for(main(), 30)) == ["mine", "request", "drain"]


SAMPLED = SamplingParams(max_tokens=20, n=3, temperature=1.0, seed=5)


def test_samples_of_one_prompt(engine: Engine):
    """A list, in order; the same answers as in a batch."""
    expected = [c.text for c in engine.generate(PROMPTS[:1], SAMPLED, POLICY)]

    async def main() -> None:
        async with AsyncEngine(engine) as served:
            answers = await served.generate(PROMPTS[0], SAMPLED, POLICY)
            assert [a.text for a in answers] == expected
            assert [a.sample for a in answers] == [0, 1, 2]
            texts, done = ["", "", ""], []
            async for event in served.stream(PROMPTS[0], SAMPLED, POLICY):
                texts[event.sample] += event.text
                done += [event] if event.kind == "done" else []
        assert texts == expected
        assert sorted(e.sample for e in done) == [0, 1, 2]
        assert all(e.completion and e.completion.sample == e.sample for e in done)

    asyncio.run(main())


def test_a_stream_of_samples_that_is_left_ends_them_all(engine: Engine):
    async def main() -> None:
        async with AsyncEngine(engine) as served:
            events = served.stream(PROMPTS[0], SAMPLED, POLICY)
            async for _ in events:
                break
            await events.aclose()

    asyncio.run(asyncio.wait_for(main(), 60))
    assert engine.scheduler.running == engine.scheduler.waiting == 0
    engine.scheduler.check_integrity()


def test_answers_as_they_end():
    """Short answers come before long ones, each with its index; the queue is short."""
    engine = Engine("tiny", config=EngineConfig(check_every=1, max_waiting=6))
    lengths = [60, 2, 30, 1] * 3
    params = [SamplingParams(max_tokens=n, ignore_eos=True) for n in lengths]
    prompts = PROMPTS[:12]
    expected = [c.text for c in engine.generate(prompts, params, "small")]

    async def main() -> list[tuple[int, str]]:
        async with AsyncEngine(engine) as served:
            found = served.as_completed((p for p in prompts), params, "small")
            return [(index, answer.text) async for index, answer in found]

    answers = asyncio.run(asyncio.wait_for(main(), 120))
    assert sorted(answers) == list(enumerate(expected))
    assert max(lengths[i] for i, _ in answers[:2]) <= 2


def test_answers_as_they_end_name_a_wrong_prompt(engine: Engine):
    async def main() -> None:
        async with AsyncEngine(engine) as served:
            with pytest.raises(SteerError, match=r"^prompt 2: the prompt is empty$"):
                async for _ in served.as_completed([*PROMPTS[:2], ""], PARAMS, "small"):
                    pass
            answers = [a async for a in served.as_completed([PROMPTS[0]], SAMPLED, "small")]
            assert len(answers) == 3 and {index for index, _ in answers} == {0}

    asyncio.run(asyncio.wait_for(main(), 60))
    assert engine.scheduler.running == engine.scheduler.waiting == 0


def test_it_takes_an_engine_only():
    with pytest.raises(SteerError, match="AsyncEngine takes an Engine, got a str"):
        AsyncEngine("tiny")
