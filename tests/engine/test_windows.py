"""Windows: trials that are kept or taken back, what they are judged by, and what they recover."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from bench.evaluate import Evaluation, TestSet, evaluate
from bench.tasks import arithmetic
from engine import (
    Calibration,
    Cascade,
    Engine,
    EngineConfig,
    Policy,
    Query,
    SamplingParams,
    Signals,
    Steer,
    SteerError,
    Threshold,
    Window,
)
from engine.accounting.ledger import Usage
from engine.routing.names import make_policy
from engine.routing.policies import Call

RIGID = Path(__file__).parents[1] / "data" / "rigid"
GREEDY = SamplingParams(max_tokens=48)
PARAMS = SamplingParams(max_tokens=80)
PROMPTS = [p.prompt for p in arithmetic.problems("test", 12, seed=6)]


def alternating(position: int) -> str:
    """A schedule that hands over about every second step."""
    return "large" if position * 7919 % 13 < 6 else "small"


def late(position: int) -> str:
    """The large model first, then the small one to the end: a kept answer is asked once."""
    return "large" if position < 40 else "small"


@pytest.fixture
def engine() -> Engine:
    return Engine("tiny", config=EngineConfig(check_every=1, prefix_cache=False))


@pytest.fixture(scope="module")
def rigid() -> Engine:
    off = EngineConfig(prefix_cache=False)
    return Engine("custom", small=RIGID / "small", large=RIGID / "large", config=off)


@pytest.fixture(scope="module")
def rigid_tests() -> TestSet:
    problems = arithmetic.problems("test", 120, style="rigid")
    return TestSet(problems, arithmetic.is_correct, max_tokens=120)


def accuracy(engine: Engine, tests: TestSet, policy: str) -> Evaluation:
    return evaluate(engine, make_policy(policy), tests)


def test_a_probe_recovers_what_the_boundary_misses(rigid: Engine, rigid_tests: TestSet):
    """Rigid steps open with a copy: no boundary is unsure, yet half of the answers are wrong."""
    small, large = (accuracy(rigid, rigid_tests, p) for p in ("small", "large"))
    boundary = accuracy(rigid, rigid_tests, "threshold:max_prob:0.9")
    probe = accuracy(rigid, rigid_tests, "threshold:max_prob:0.9@probe:8:least")
    assert large.accuracy > 0.98 and small.accuracy < 0.65
    assert boundary.large_step_share < 0.01
    assert abs(boundary.accuracy - small.accuracy) < 0.02
    assert probe.accuracy > large.accuracy - 0.03
    assert 0.05 < probe.large_step_share < 0.35
    # Four tokens only restate the operation.
    assert accuracy(rigid, rigid_tests, "threshold:max_prob:0.9@probe:4").accuracy < 0.65


def test_a_calibrated_probe(rigid: Engine, rigid_tests: TestSet):
    """STEER's mixture works on a window as it does on a boundary."""
    window = Window.parse("probe:8:least")
    read_all = Call(lambda boundary: "small", window=window)
    problems = arithmetic.problems("calibration", 80, style="rigid")
    done = rigid.generate([p.prompt for p in problems], SamplingParams(max_tokens=120), read_all)
    signals = [s.signals for c in done for s in c.steps if s.signals]
    assert len(signals) == sum(len(c.steps) for c in done)
    fitted = Calibration.fit(rigid.fingerprint, "max_prob", signals, window=str(window))
    steer = evaluate(rigid, Steer(fitted, tau=0.5), rigid_tests)
    assert steer.accuracy > 0.95 and steer.large_step_share < 0.35


@pytest.mark.parametrize("settle_at_once", [True, False])
@pytest.mark.parametrize("window", ["probe:1", "probe:3", "probe:40", "answer", "step"])
def test_text_under_trials_is_that_of_the_schedule(
    pair, prompts, delimiters, ties, window, settle_at_once
):
    """Kept or taken back: each token is what the model that wrote it says of its prefix."""
    engine = pair.engine(delimiters=delimiters, block_tokens=4, check_every=1)
    schedule = late if window == "answer" else alternating
    policy = Call(
        lambda b: schedule(b.position), reads=window != "step", window=Window.parse(window)
    )
    ids = [
        engine.submit(prompt, GREEDY, policy, settle_at_once=settle_at_once)
        for prompt in prompts(16, seed=5)
    ]
    done = []
    while len(done) < len(ids):
        done += engine.step()
    for completion in done:
        pair.check(completion, schedule, ties)
    usage = sum((c.usage for c in done), Usage())
    assert (usage.count("small", "discarded") > 0) == (window != "step")
    if not engine.config.speculate:
        assert usage.count("large", "discarded") == 0


def test_a_trial_that_is_taken_back_is_booked_as_discarded(engine: Engine):
    """k rows a boundary that went to the large model, and never more than the step has."""
    always = Call(lambda boundary: "large", window=Window("probe", 4))
    (done,) = engine.generate(PROMPTS[:1], PARAMS, always)
    (alone,) = engine.generate(PROMPTS[:1], PARAMS, "large")
    assert done.text == alone.text
    steps = len(done.steps)
    assert done.usage.count("small", "sampled") == 0
    assert 3 * steps < done.usage.count("small", "discarded") <= 4 * steps
    assert done.usage.count("large", "sampled") == len(done.token_ids)


def test_a_trial_that_is_kept_costs_nothing(engine: Engine):
    (done,) = engine.generate(
        PROMPTS[:1], PARAMS, Call(lambda b: "small", window=Window("probe", 3))
    )
    (alone,) = engine.generate(PROMPTS[:1], PARAMS, "small")
    assert done.text == alone.text and done.usage.to_json() == alone.usage.to_json()
    assert [s.text for s in done.steps] == [s.text for s in alone.steps]


def test_boundaries_say_what_stands_on_trial(engine: Engine):
    seen = []

    def policy(boundary):
        seen.append(boundary)
        return "small"

    (done,) = engine.generate(PROMPTS[:1], PARAMS, Call(policy, window=Window("probe", 3)))
    assert [b.position for b in seen] == [s.position for s in done.steps]
    assert [b.tried for b in seen] == [min(3, len(s.token_ids)) for s in done.steps]
    assert [b.step for b in seen] == list(range(len(done.steps)))


def test_the_cascade_redoes_unsure_answers(engine: Engine):
    """Kept: the small model's text. Not kept: the large one's, from the prompt on."""
    small, large = (engine.generate(PROMPTS, PARAMS, p) for p in ("small", "large"))
    done = engine.generate(PROMPTS, PARAMS, Cascade("max_prob", 0.9))
    redone = [c.steps[0].model == "large" for c in done]
    assert 0 < sum(redone) < len(done)
    for found, again, s, g in zip(done, redone, small, large, strict=True):
        assert found.text == (g if again else s).text
        assert len({step.model for step in found.steps}) == 1
        assert found.steps[0].signals is not None
        discarded = found.usage.count("small", "discarded")
        assert discarded == (len(s.token_ids) if again else 0)


def test_nothing_of_a_cascade_streams_before_the_decision(engine: Engine):
    """Text comes only once it cannot be taken back."""
    for value, model in ((0.0, "small"), (1.1, "large")):
        events = list(engine.stream(PROMPTS[0], PARAMS, Cascade("max_prob", value)))
        text = "".join(e.text for e in events)
        assert text == events[-1].completion.text
        assert {e.model for e in events if e.kind == "step"} == {model}


def test_the_step_window_judges_the_step_before(engine: Engine):
    """Its signals are the mean over what the small model wrote; large steps hand back."""
    done = engine.generate(PROMPTS, PARAMS, Threshold("max_prob", 0.97, window=Window("step")))
    assert any(s.model == "large" for c in done for s in c.steps)
    for completion in done:
        before = None
        for step in completion.steps:
            assert (step.signals is not None) == (before == "small")
            if before != "small":
                assert step.model == "small"
            before = step.model
        assert completion.usage.count("small", "discarded") == 0  # nothing was read for it


def test_summaries_of_signals():
    """By hand: means, the log-odds of the mean probability, and the least sure of each."""
    a = Signals(0.5, 1.0, 0.0, 2.0, 3.0, 4.0)
    b = Signals(0.75, 0.5, math.log(3), 4.0, 5.0, 6.0)
    mean = Signals.mean([a, b])
    assert (mean.max_prob, mean.entropy, mean.margin) == (0.625, 0.75, 3.0)
    assert mean.log_odds == pytest.approx(math.log(0.625 / 0.375))
    assert Signals.least([a, b]) == Signals(0.5, 1.0, 0.0, 2.0, 3.0, 4.0)
    sure = Signals(1.0, 0.0, math.inf, 9.0, 9.0, 9.0)
    assert Signals.mean([sure, sure]).log_odds == math.inf


@pytest.mark.parametrize("text", ["", "probe", "probe:0", "probe:x", "boundary:least", "steps"])
def test_unknown_windows_are_refused(text: str):
    with pytest.raises(SteerError):
        Window.parse(text)


def test_window_names_round_trip():
    for name in ("boundary", "step", "step:least", "probe:8", "probe:8:least", "answer:least"):
        assert str(Window.parse(name)) == name


def test_a_probe_longer_than_the_answer_is_refused(engine: Engine):
    policy = Threshold("max_prob", 0.9, window=Window("probe", 81))
    with pytest.raises(SteerError, match="a probe of 81 tokens is longer than max_tokens"):
        engine.submit(PROMPTS[0], PARAMS, policy)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("small@probe:3", "has a window of its own"),
        ("threshold:max_prob:0.9@prob:3", "unknown window 'prob:3'"),
        ("cascade:max_prob:0.9@probe:3", "cascade looks at answer, not probe:3"),
        ("cascade:max_prob", "expected cascade:SIGNAL:VALUE"),
        ("cascade:probability:0.9", "unknown signal"),
    ],
)
def test_bad_policy_names(policy: str, message: str):
    with pytest.raises(SteerError, match=message):
        make_policy(policy)


def test_a_query_asks_in_its_own_window(engine: Engine):
    """What it decides at the prompt is what the policy inside decides there."""
    inner = Threshold("max_prob", 0.9, window=Window("probe", 4, least=True))
    seen = []

    def policy(boundary):
        seen.append(boundary)
        return inner.decide(boundary)

    engine.generate(PROMPTS, PARAMS, Query(Call(policy, window=inner.window)))
    assert len(seen) == len(PROMPTS) and all(b.tried == 4 and b.signals for b in seen)


@pytest.mark.costs
@pytest.mark.parametrize(
    "policy",
    [Cascade("max_prob", 1.1), Query(Threshold("max_prob", 1.1))],
    ids=["cascade", "query"],
)
@pytest.mark.parametrize("limit", [{"max_flops": 1e15}, {"max_think_tokens": 60, "think_end": "?"}])
def test_a_decision_for_the_rest_is_not_paid_for_twice(engine: Engine, policy: Policy, limit: dict):
    """A cap or a thinking limit that never bites asks again, but reads and tries nothing."""
    (plain,) = engine.generate(PROMPTS[:1], PARAMS, policy)
    (capped,) = engine.generate(PROMPTS[:1], SamplingParams(max_tokens=80, **limit), policy)
    assert capped.text == plain.text
    assert capped.usage.to_json() == plain.usage.to_json()


def test_signals_of_a_tick_that_a_cancel_brings_home(engine: Engine, monkeypatch):
    """Another call's interrupt costs a probing request nothing."""
    policy = "threshold:max_prob:0.9@probe:1"
    expected = [c.text for c in engine.generate(PROMPTS, PARAMS, policy)]
    decoder = engine.lanes[0].runner.decoder
    statistics, calls = decoder.signals, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) in (3, 7, 12):
            raise KeyboardInterrupt
        return statistics(*arguments)

    ids = [engine.submit(p, PARAMS, policy) for p in PROMPTS]
    monkeypatch.setattr(decoder, "signals", interrupted)
    done = {}
    while len(done) < len(ids):
        try:
            engine.generate(PROMPTS[:2], PARAMS, "small")
        except KeyboardInterrupt:
            continue
        done |= {c.request_id: c.text for c in engine.step()}
    assert [done[i] for i in ids] == expected


def test_no_trial_is_read_along():
    """An eager large model with the text in its cache still waits for settled tokens."""
    config = EngineConfig(block_tokens=1, eager_backlog=1, lane_policy="weighted", check_every=1)
    engine = Engine("tiny", config=config)
    prompts = PROMPTS[:6]
    engine.generate(prompts, PARAMS, "small")
    engine.generate(prompts, PARAMS, "large")
    seen = []

    def policy(boundary):
        seen.append(boundary)
        return "small"

    engine.generate(prompts, PARAMS, Call(policy, window=Window("answer")))
    assert seen and all(b.tried > 0 and b.catch_up >= 1 for b in seen)


@pytest.mark.parametrize("arguments", [("bogus",), ("probe", 2.5), ("probe", 0), ("step", 3)])
def test_windows_that_make_no_sense(arguments: tuple):
    with pytest.raises(SteerError):
        Window(*arguments)


def test_a_calibration_leaves_out_what_has_no_signals(engine: Engine):
    """A window of the last step has none where the large model wrote, or no model yet."""
    policy = Threshold("max_prob", 0.97, window=Window("step"))
    done = engine.generate(PROMPTS, PARAMS, policy)
    signals = [s.signals for c in done for s in c.steps]
    assert None in signals
    fitted = Calibration.fit(engine.fingerprint, "max_prob", signals, window="step")
    assert fitted.provenance["boundaries"] == sum(s is not None for s in signals)
