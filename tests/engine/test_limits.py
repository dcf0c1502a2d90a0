"""Limits on thinking, on loops, and on what the large model may do."""

from __future__ import annotations

import math

import pytest

from bench.tasks import arithmetic
from engine import AfterThinking, Engine, EngineConfig, SamplingParams, SteerError, Threshold
from engine.accounting.ledger import Usage
from engine.accounting.pricing import pair_flops
from engine.routing.budget import Budget
from engine.routing.policies import Always, Call, Query
from engine.routing.policy import Boundary, Decision
from engine.routing.windows import Window

PROMPTS = [p.prompt for p in arithmetic.problems("test", 12, seed=6)]
MARK = "?*"  # a text that no model writes by itself
PLAIN = SamplingParams(max_tokens=80)


@pytest.fixture
def engine() -> Engine:
    return Engine("tiny", config=EngineConfig(check_every=1))


@pytest.mark.parametrize("policy", ["small", "large", "steer", "threshold:max_prob:0.9@probe:3"])
@pytest.mark.parametrize("limit", [1, 7, 12])
def test_thinking_ends_at_its_limit(engine: Engine, policy: str, limit: int):
    """The marker comes right after the limit, and a boundary after the marker."""
    params = SamplingParams(max_tokens=40, max_think_tokens=limit, think_end=MARK, ignore_eos=True)
    plain = SamplingParams(max_tokens=max(limit, 3), ignore_eos=True)
    mark = tuple(engine.tokenizer.encode(MARK))
    done = engine.generate(PROMPTS, params, policy)
    for found, free in zip(done, engine.generate(PROMPTS, plain, policy), strict=True):
        assert found.token_ids[:limit] == free.token_ids[:limit]
        assert found.token_ids[limit : limit + len(mark)] == mark
        prompt = len(found.prompt_token_ids)
        assert prompt + limit + len(mark) in [s.position for s in found.steps]
        drawn = sum(found.usage.count(role, "sampled") for role in ("small", "large"))
        assert drawn == len(found.token_ids) - len(mark)


def test_forced_tokens_have_no_log_probability(engine: Engine):
    params = SamplingParams(max_tokens=30, max_think_tokens=5, think_end=MARK, logprobs=0)
    for done in engine.generate(PROMPTS, params, "threshold:max_prob:0.9@probe:3"):
        assert done.logprobs is not None and len(done.logprobs) == len(done.token_ids)
        forced = range(5, 5 + len(engine.tokenizer.encode(MARK)))
        assert [i for i, p in enumerate(done.logprobs) if p.logprob is None] == list(forced)


def test_a_model_that_ends_thinking_itself_is_not_forced(ring):
    """c follows b by itself: the limit is never reached."""
    engine = ring.engine(check_every=1)
    params = SamplingParams(max_tokens=9, think_end="bc", max_think_tokens=5)
    (done,) = engine.generate(["a"], params, "small")
    assert done.text == "bc\n\nabc\n\nab"
    assert done.usage.count("small", "sampled") == 9
    assert [s.text for s in done.steps] == ["bc", "\n\nabc\n\n", "ab"]


@pytest.mark.parametrize("window", ["boundary", "probe:3"])
def test_another_policy_writes_the_answer(engine: Engine, window: str):
    thinking = Threshold("max_prob", 0.9, window=Window.parse(window))
    policy = AfterThinking(thinking, Always("large"))
    params = SamplingParams(max_tokens=60, max_think_tokens=11, think_end=MARK)
    done = engine.generate(PROMPTS, params, policy)
    alone = engine.generate(PROMPTS, params, thinking)
    behind = 11 + len(engine.tokenizer.encode(MARK))
    for found, other in zip(done, alone, strict=True):
        split = len(found.prompt_token_ids) + behind
        before = [(s.model, s.text) for s in found.steps if s.position < split]
        assert before == [(s.model, s.text) for s in other.steps if s.position < split]
        assert {s.model for s in found.steps if s.position >= split} <= {"large"}
    assert any(s.model == "small" for c in done for s in c.steps)


def test_a_word_for_the_rest_ends_with_thinking(engine: Engine):
    """A query decides once for the thinking part; the answer is asked about again."""
    policy = AfterThinking(Query(Threshold("max_prob", 2.0)), Always("small"))
    params = SamplingParams(max_tokens=60, max_think_tokens=11, think_end=MARK)
    for done in engine.generate(PROMPTS, params, policy):
        models = [s.model for s in done.steps]
        assert models == sorted(models) and set(models) <= {"large", "small"}
        assert models[0] == "large"


def test_policies_that_cannot_be_joined():
    probe = Threshold(window=Window("probe", 3))
    with pytest.raises(SteerError, match="must look at one window, got boundary and probe:3"):
        AfterThinking(Threshold(), probe)
    with pytest.raises(SteerError, match="cannot end with thinking"):
        AfterThinking(Threshold(window=Window("answer")), Always("large"))


def test_a_window_of_the_last_step_before_the_answer(engine: Engine):
    """It is the thinking part's window, though it reads nothing."""
    thinking = Threshold("max_prob", 1.1, window=Window("step"))
    params = SamplingParams(max_tokens=60, max_think_tokens=40, think_end=MARK)
    joined = engine.generate(PROMPTS, params, AfterThinking(thinking, Always("small")))
    alone = engine.generate(PROMPTS, params, thinking)
    assert any(s.model == "large" for c in joined for s in c.steps)
    texts = [[c.text.split(MARK)[0] for c in done] for done in (joined, alone)]
    assert texts[0] == texts[1]


def test_a_marker_that_cannot_be_written(engine: Engine):
    with pytest.raises(SteerError, match="think_end '</Think>': the tokenizer does not know"):
        params = SamplingParams(max_tokens=9, max_think_tokens=3, think_end="</Think>")
        engine.submit(PROMPTS[0], params, "small")


def test_a_loop_ends_a_text(ring):
    """Four tokens go round: 32 of them are eight rounds."""
    engine = ring.engine(check_every=1)
    params = SamplingParams(max_tokens=100, max_repeats=4)
    (done,) = engine.generate(["a"], params, "small")
    assert done.finish_reason == "repetition" and len(done.token_ids) == 32
    (more,) = engine.generate(["a"], SamplingParams(max_tokens=100, max_repeats=11), "small")
    assert more.finish_reason == "repetition" and len(more.token_ids) == 44
    (off,) = engine.generate(["a"], SamplingParams(max_tokens=100), "small")
    assert off.finish_reason == "length"


def test_a_loop_within_a_trial_can_be_taken_back(ring):
    """The small model's looping answer goes; the large one's loops too, and ends."""
    engine = ring.engine(check_every=1)
    policy = Call(lambda b: Decision("large", "again", rest=True), window=Window("answer"))
    (done,) = engine.generate(["a"], SamplingParams(max_tokens=100, max_repeats=4), policy)
    assert done.finish_reason == "repetition" and {s.model for s in done.steps} == {"large"}
    assert done.usage.count("small", "discarded") == 32


def test_the_largest_number_of_repeats(engine: Engine):
    params = SamplingParams(max_tokens=100, max_repeats=2**31 - 1, ignore_eos=True, temperature=2.0)
    (done,) = engine.generate(PROMPTS[:1], params, "small")
    assert done.finish_reason == "length"


def test_answers_do_not_loop_by_accident(engine: Engine):
    guarded = SamplingParams(max_tokens=80, max_repeats=2)
    texts = [[c.text for c in engine.generate(PROMPTS, p, "steer")] for p in (PLAIN, guarded)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("policy", ["large", "random:0.8", "threshold:max_prob:0.97"])
@pytest.mark.parametrize("cap", [0.0, 0.2, 0.5])
def test_a_cap_on_the_large_share(engine: Engine, policy: str, cap: float):
    """At no boundary is a step handed over while the share is above the cap."""
    params = SamplingParams(max_tokens=80, max_large_share=cap)
    capped = False
    for done in engine.generate(PROMPTS, params, policy):
        written = large = 0
        for step in done.steps:
            if step.model == "large":
                assert cap > 0 and large <= cap * written
                large += len(step.token_ids)
            capped |= step.reason.startswith("budget: large share")
            written += len(step.token_ids)
    assert capped


def test_a_cap_on_flops(engine: Engine):
    """The cost is what the ledger says, catch-up included; a step may pass the cap, no more."""
    free = engine.generate(PROMPTS, PLAIN, "large")
    costs = [pair_flops(c.usage, engine.shapes, "catchup") for c in free]
    cap = sum(costs) / len(costs) / 2
    params = SamplingParams(max_tokens=80, max_flops=cap)
    done = engine.generate(PROMPTS, params, "large")
    step = pair_flops(Usage.alone("large", 1, 9), engine.shapes, "catchup")  # of eight tokens
    for found, cost in zip(done, costs, strict=True):
        models = [s.model for s in found.steps]
        assert models == sorted(models)  # large until the cap, small after it
        spent = pair_flops(found.usage, engine.shapes, "catchup")
        assert spent < cost and spent < cap + 2 * step
        assert found.steps[-1].reason.startswith("budget: ")
    assert all(c.steps[0].model == "large" for c in done)


def test_budgets_by_hand():
    boundary = Boundary(1, 3, 40, 20, "small", 9, None, large_tokens=8)
    large = Decision("large", "unsure")
    assert Budget(0.4).cap(large, boundary, lambda: 0) == large
    assert Budget(0.39).cap(large, boundary, lambda: 0).model == "small"
    assert Budget(flops=10.0).cap(large, boundary, lambda: 10) == large
    assert Budget(flops=10.0).cap(large, boundary, lambda: 11).model == "small"
    assert Budget().unlimited and not Budget(flops=1.0).unlimited
    small = Decision("small", "sure")
    assert Budget(0.0).cap(small, boundary, lambda: 0) == small


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_think_tokens": -1}, "max_think_tokens must be 0"),
        ({"max_repeats": 1}, "max_repeats must be 0 .off. or 2 or more"),
        ({"max_large_share": 1.1}, r"max_large_share must be in \[0, 1\]"),
        ({"max_flops": -1.0}, "max_flops must be 0 or more"),
        ({"max_flops": math.nan}, "max_flops must be 0 or more"),
        ({"think_end": 3}, "think_end must be text"),
        ({"max_large_share": "0.5"}, "max_large_share must be a number"),
        ({"stop": 5}, "stop must be strings"),
        ({"stop": None}, "stop must be strings"),
        ({"stop": ("\ud800",)}, "stop must be valid Unicode"),
        ({"stop_token_ids": 5}, "stop_token_ids must be token ids"),
        ({"ignore_eos": "no"}, "ignore_eos must be true or false"),
    ],
)
def test_bad_limits(changes: dict, message: str):
    with pytest.raises(SteerError, match=message):
        SamplingParams(**changes)
