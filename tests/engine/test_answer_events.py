"""What the events of an answer say: ids, log-probabilities, steps, moments, and what stopped it."""

from __future__ import annotations

import asyncio
import time

import pytest

from bench.tasks import arithmetic
from engine import (
    AsyncEngine,
    Engine,
    EngineConfig,
    QueueFullError,
    SamplingParams,
    UnavailableError,
    Usage,
)
from engine.aio.answers import Answers
from engine.requests.stream import StreamEvent

PROMPTS = [p.prompt for p in arithmetic.problems("test", 6, seed=7)]
PARAMS = SamplingParams(max_tokens=80, logprobs=2)
POLICY = "threshold:max_prob:0.9"


@pytest.fixture
def engine() -> Engine:
    return Engine("tiny", config=EngineConfig(check_every=1))


async def taken(answers: Answers, pause: float = 0.0) -> list[list[StreamEvent]]:
    turns = []
    async for events in answers:
        turns.append(events)
        if pause:
            await asyncio.sleep(pause)
    return turns


def check_events(events: list[StreamEvent]) -> None:
    """The events of one answer say what its completion says."""
    (done,) = (e.completion for e in events if e.completion)
    texts = [e for e in events if e.kind == "text"]
    assert events[-1].completion is done
    assert "".join(e.text for e in texts) == done.text
    assert tuple(i for e in texts for i in e.token_ids) == done.token_ids
    assert tuple(x for e in texts for x in e.logprobs or ()) == done.logprobs
    steps = [e.step for e in events if e.step]
    told = [(s.index, s.position, s.model, s.reason, s.signals, s.posterior) for s in steps]
    assert told == [
        (s.index, s.position, s.model, s.reason, s.signals, s.posterior) for s in done.steps
    ]
    assert [s.catch_up for s in steps] == [s.catch_up for s in done.steps]
    assert all(s.text == "" and s.token_ids == () for s in steps)
    assert [e.time for e in events] == sorted(e.time for e in events)


@pytest.mark.parametrize("policy", [POLICY, "large", "small", "judge:-3", "verify:0.3:4", "steer"])
def test_events_say_what_the_completion_says(engine: Engine, policy: str) -> None:
    for prompt in PROMPTS[:3]:
        check_events(list(engine.stream(prompt, PARAMS, policy)))


@pytest.mark.parametrize("pause", [0.0, 0.03])
def test_samples_are_told_apart_however_slowly_they_are_read(engine: Engine, pause: float) -> None:
    params = SamplingParams(max_tokens=60, n=3, temperature=1, seed=5, logprobs=0)
    expected = engine.generate(PROMPTS[:1], params, POLICY)

    async def main() -> list[list[StreamEvent]]:
        async with AsyncEngine(engine) as served:
            return await taken(await served.submit(PROMPTS[0], params, POLICY), pause)

    turns = asyncio.run(main())
    for sample in range(3):
        events = [e for turn in turns for e in turn if e.sample == sample]
        check_events(events)
        done = events[-1].completion
        assert done is not None and done.text == expected[sample].text
    if pause:  # what came meanwhile is merged
        assert len(turns) < max(len(c.token_ids) for c in expected)


def test_moments_are_in_order_and_now(engine: Engine) -> None:
    before = time.monotonic()
    (done,) = engine.generate(PROMPTS[:1], PARAMS, POLICY)
    times = done.times
    assert times is not None and times.started is not None and times.first_token is not None
    assert before < times.queued <= times.started < times.first_token < times.ended
    assert times.ended < time.monotonic()


def test_what_never_ran_has_no_first_token(engine: Engine) -> None:
    request = engine.submit(PROMPTS[0], PARAMS, POLICY)
    engine.abort(request)
    (done,) = engine.step()
    assert done.times is not None and done.finish_reason == "abort"
    assert (done.times.started, done.times.first_token) == (None, None)


@pytest.mark.parametrize("include", [False, True])
def test_the_stop_that_ended_it_is_named(engine: Engine, include: bool) -> None:
    text = engine.generate(PROMPTS[:1], SamplingParams(), "large")[0].text
    whole = SamplingParams(stop=(text[5:8], text[5:7], "zz"), include_stop=include)
    (done,) = engine.generate(PROMPTS[:1], whole, "large")
    cut = text.index(text[5:7])
    assert done.stop_reason == text[5:7], "of two that begin together the shorter is found first"
    assert done.text == text[: cut + 2 * include]

    token = engine.generate(PROMPTS[:1], SamplingParams(), "large")[0].token_ids[5]
    ended = SamplingParams(stop_token_ids=(token,), include_stop=include)
    (done,) = engine.generate(PROMPTS[:1], ended, "large")
    assert done.stop_reason == token and done.token_ids[-1] == token
    kept = done.token_ids if include else done.token_ids[:-1]
    assert done.text == engine.tokenizer.text_of(kept)
    streamed = list(engine.stream(PROMPTS[0], ended, "large"))
    assert "".join(e.text for e in streamed) == done.text


def test_an_end_of_the_models_own_has_no_stop_reason(engine: Engine) -> None:
    (done,) = engine.generate(PROMPTS[:1], SamplingParams(), "large")
    assert (done.finish_reason, done.stop_reason) == ("stop", None)
    (short,) = engine.generate(PROMPTS[:1], SamplingParams(max_tokens=2), "large")
    assert (short.finish_reason, short.stop_reason) == ("length", None)


def test_cached_tokens_are_those_of_the_prompt(engine: Engine) -> None:
    prompt = engine.tokenizer.encode(PROMPTS[0]) * 8
    first, second = (
        engine.generate([prompt], SamplingParams(max_tokens=2), "small")[0] for _ in range(2)
    )
    assert first.cached_tokens == 0
    block = engine.config.block_tokens
    assert second.cached_tokens == (len(prompt) - 1) // block * block > 0


def test_places_are_counted_to_the_last(engine: Engine) -> None:
    """A full queue refuses the next request at once, and one that has been queued takes no place
    twice."""
    engine = Engine("tiny", config=EngineConfig(max_sequences=1, max_waiting=4))

    async def main() -> None:
        async with AsyncEngine(engine) as served:

            async def ask() -> str:
                with served.room() as room:
                    answers = await served.submit(PROMPTS[0], PARAMS, "large", room=room)
                return [e async for turn in _each(answers) for e in turn][-1].kind

            first = asyncio.create_task(ask())
            while engine.scheduler.running == 0:
                await asyncio.sleep(0.001)
            others = [asyncio.create_task(ask()) for _ in range(4)]
            await asyncio.sleep(0)
            with pytest.raises(QueueFullError, match=r"4 requests wait, it holds 4"), served.room():
                pass
            assert await asyncio.gather(first, *others) == ["done"] * 5
            assert served.snapshot()["reserved"] == served.snapshot()["open"] == 0

    asyncio.run(main())


async def _each(answers: Answers):
    async for turn in answers:
        yield turn


def test_a_snapshot_adds_up(engine: Engine) -> None:
    done = engine.generate(PROMPTS, PARAMS, POLICY)
    numbers = engine.snapshot()
    assert numbers["finished"] == {"stop": len(PROMPTS)}
    for role in ("small", "large"):
        counted = sum(c.usage.count(role, "sampled") for c in done)
        assert numbers["rows"][role]["sampled"] == counted
        assert numbers["tokens"][role]["live"] == 0
    assert numbers["kv_usage"] == numbers["running"] == numbers["waiting"] == 0
    assert sum(numbers["slabs"][owner] for owner in ("small", "large", "free")) == (
        engine.arena.geometry.slabs
    )
    entered = [
        [
            i
            for i, s in enumerate(c.steps)
            if s.model == "large" and (not i or c.steps[i - 1].model == "small")
        ]
        for c in done
    ]
    assert numbers["handoffs"] == sum(map(len, entered)) > 0


def test_flops_are_those_of_the_accountings(engine: Engine) -> None:
    (done,) = engine.generate(PROMPTS[:1], PARAMS, POLICY)
    flops = engine.flops(done.usage)
    assert 0 < flops["decode"] < min(flops["catchup"], flops["reprefill"])
    small = engine.generate(PROMPTS[:1], PARAMS, "small")[0]
    alone = engine.flops(Usage.alone("small", len(small.prompt_token_ids), len(small.token_ids)))
    assert engine.flops(small.usage)["catchup"] == alone["catchup"]


def test_draining_waits_and_then_aborts(engine: Engine) -> None:
    long = SamplingParams(max_tokens=200, ignore_eos=True)

    async def main() -> None:
        for timeout, whole in ((None, True), (0.01, False)):
            served = AsyncEngine(engine)
            reading = [
                asyncio.create_task(taken(await served.submit(p, long, "large"))) for p in PROMPTS
            ]
            draining = asyncio.create_task(served.drain(timeout))
            await asyncio.sleep(0)
            with pytest.raises(UnavailableError, match="takes no more requests"):
                await served.submit(PROMPTS[0], long, "large")
            assert await draining is whole
            ends = [(await task)[-1][-1].completion.finish_reason for task in reading]
            assert set(ends) == ({"length"} if whole else {"abort"})
            await served.aclose()

    asyncio.run(main())
    assert engine.scheduler.running == engine.scheduler.waiting == 0


def test_it_is_alive_while_it_works_and_while_it_is_idle(engine: Engine) -> None:
    async def main() -> None:
        async with AsyncEngine(engine) as served:
            assert served.alive()
            answers = await served.submit(PROMPTS[0], PARAMS, POLICY)
            assert served.alive(30)
            await taken(answers)
            await asyncio.sleep(0.05)
            assert served.alive(0.01), "an idle engine has not turned for longer, and is well"
        assert not served.alive(), "its thread has ended"

    asyncio.run(main())


def test_an_aborted_answer_ends_at_once_and_no_other(engine: Engine) -> None:
    expected = engine.generate(PROMPTS[:1], PARAMS, "large")[0].text
    long = SamplingParams(max_tokens=200, ignore_eos=True)

    async def main() -> None:
        async with AsyncEngine(engine) as served:
            kept = asyncio.create_task(served.generate(PROMPTS[0], PARAMS, "large"))
            answers = await served.submit(PROMPTS[1], long, "large")
            answers.abort()
            answers.abort()
            turns = await taken(answers)
            answers.abort()
            done = turns[-1][-1].completion
            assert done is not None and done.finish_reason == "abort"
            assert (await kept).text == expected

    asyncio.run(main())
