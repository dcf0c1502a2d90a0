"""Several answers to one prompt: drawn apart, their prompt computed once."""

from __future__ import annotations

import pytest

from bench.tasks import arithmetic
from engine import (
    AsyncEngine,
    Completion,
    Engine,
    EngineConfig,
    QueueFullError,
    SamplingParams,
    SteerError,
)
from engine.routing.policies import Call

PROMPTS = [p.prompt for p in arithmetic.problems("test", 6, seed=8)]
WARM = SamplingParams(max_tokens=60, temperature=2.0, seed=5)


def engine(**changes) -> Engine:
    """Blocks of 8 tokens: the prompts end within one."""
    return Engine("tiny", config=EngineConfig(block_tokens=8, check_every=1, **changes))


def warm(n: int) -> SamplingParams:
    return SamplingParams(max_tokens=60, temperature=2.0, seed=5, n=n)


@pytest.mark.parametrize("prefix_cache", [False, True])
@pytest.mark.parametrize("policy", ["small", "large", "threshold:max_prob:0.9"])
def test_samples_are_what_they_are_alone(policy: str, prefix_cache: bool):
    """A sample's text depends on its number, not on who runs beside it."""
    made = engine(prefix_cache=prefix_cache)
    four, two = (made.generate(PROMPTS, warm(n), policy) for n in (4, 2))
    assert [c.sample for c in four] == [0, 1, 2, 3] * len(PROMPTS)
    assert [c.prompt_token_ids for c in four[::4]] == [c.prompt_token_ids for c in two[::2]]
    for i in range(len(PROMPTS)):
        texts = [c.text for c in four[4 * i : 4 * i + 4]]
        assert texts[:2] == [c.text for c in two[2 * i : 2 * i + 2]]
    assert len({c.text for c in four}) > len(PROMPTS) * 2  # they differ


@pytest.mark.costs
@pytest.mark.parametrize("lanes", [("small",), ("large",), ("small", "large")])
def test_the_prompt_is_computed_once_a_model(lanes: tuple[str, ...]):
    """All but its last row, which each sample needs for itself."""
    made = engine(prefix_cache=False)
    share = {"small": 0.0, "large": 1.0}.get(lanes[0]) if len(lanes) == 1 else None
    policy = lanes[0] if share is not None else Call(lambda b: lanes[b.step % 2], reads=False)
    done = made.generate(PROMPTS[:1], warm(5), policy)
    rows = sum(c.usage.rows[:, 0, 0] for c in done)  # of the kind prompt
    prompt = len(done[0].prompt_token_ids)
    for model, role in enumerate(("small", "large")):
        if role not in lanes:
            assert rows[model] == 0
            continue
        # Where a sample enters a model late it may find no sample that still holds the prompt.
        entered = [c for c in done if any(s.model == role for s in c.steps)]
        shared = sum(int(c.usage.cached[model]) for c in entered)
        if len(lanes) == 1:
            assert rows[model] == prompt - 1
            assert shared == (len(done) - 1) * (prompt - 1)
        assert shared > 0
    counters = made.scheduler.counters()
    assert sum(counters["copied"]) > 0 and sum(counters["shared"]) > 0


def test_greedy_samples_are_equal():
    done = engine().generate(PROMPTS, SamplingParams(max_tokens=60, n=3), "steer")
    for i in range(0, len(done), 3):
        assert len({c.text for c in done[i : i + 3]}) == 1


def test_samples_in_a_tight_arena(pair, delimiters, prompts, ties):
    """Preempted, evicted and recomputed, they still write what the models say."""
    made = pair.engine(
        delimiters=delimiters,
        block_tokens=4,
        arena_tokens=160,
        eager_admission=True,
        max_context=96,
        max_sequences=16,
        max_tick_tokens=24,
        check_every=1,
    )

    def schedule(position: int) -> str:
        return "large" if position % 3 == 0 else "small"

    policy = Call(lambda b: schedule(b.position), reads=True)
    done = made.generate(prompts(6, seed=3), SamplingParams(max_tokens=40, n=3), policy)
    for completion in done:
        pair.check(completion, schedule, ties)
    counters = made.scheduler.counters()
    assert counters["preemptions"] > 0 and sum(counters["copied"]) > 0


def test_more_samples_than_the_queue_holds():
    made = engine(max_waiting=4)
    with pytest.raises(SteerError, match="5 samples can never be queued at once"):
        made.generate(PROMPTS, warm(5), "small")
    made.submit_samples(PROMPTS[0], warm(3), "small")
    with pytest.raises(QueueFullError, match="the queue is full: 3 requests wait"):
        made.submit_samples(PROMPTS[0], warm(2), "small")
    assert made.scheduler.waiting == 3  # all or none
    assert len(made.generate(PROMPTS, warm(4), "small")) == 4 * len(PROMPTS)


@pytest.mark.parametrize("n", [0, -1, 1.5, "2"])
def test_bad_counts(n):
    with pytest.raises(SteerError, match=r"^n must be"):
        SamplingParams(n=n)


def test_faces_for_one_answer_refuse_more():
    made = engine()
    for call in (made.submit, lambda *a: next(made.stream(*a))):
        with pytest.raises(SteerError, match="n=2"):
            call(PROMPTS[0], warm(2), "small")


async def _serve(made: Engine) -> list[Completion]:
    async with AsyncEngine(made) as served:
        return await served.generate(PROMPTS[0], warm(2), "small")


def test_the_asyncio_face_gives_them_as_a_list():
    import asyncio

    answers = asyncio.run(_serve(engine()))
    assert [answer.sample for answer in answers] == [0, 1]
