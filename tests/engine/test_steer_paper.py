"""The rule in lock-step over a batch, and what may not stop the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from statistics import fmean

import pytest

from bench.tasks import arithmetic
from engine import Boundary, Completion, Decision, Engine, EngineConfig, SamplingParams, SteerError
from engine.requests.lock_step import ask
from engine.routing.batch_mixture import LastStep, Marks, decide_batch
from engine.routing.guessed import Verify
from engine.routing.names import make_policy
from engine.routing.policies import AfterThinking, Query
from engine.routing.steer_paper import SteerPaper
from engine.routing.together import Answer, Rewrite, Together
from engine.routing.two_way import TwoWay
from engine.text.maths import maths_tokens

PARAMS = SamplingParams(max_tokens=80, token_signals=True)
PROMPTS = [problem.prompt for problem in arithmetic.problems("test", 40, seed=6)]
Meetings = list[tuple[list[Boundary], list[Answer]]]


@dataclass(frozen=True)
class Noting(SteerPaper):
    """Keeps what it was asked and what it answered."""

    seen: Meetings = field(default_factory=list)

    def decide_together(self, boundaries: Sequence[Boundary]) -> list[Answer]:
        answers = super().decide_together(boundaries)
        self.seen.append((list(boundaries), answers))
        return answers


def writers(answers: Sequence[Completion]) -> list[list[tuple[str, str]]]:
    return [[(step.model, step.text) for step in answer.steps] for answer in answers]


@pytest.fixture(scope="module")
def run() -> tuple[Engine, Meetings, dict[int, Completion]]:
    engine, noting = Engine("tiny"), Noting()
    answers = engine.generate(PROMPTS, PARAMS, noting)
    return engine, noting.seen, {answer.request_id: answer for answer in answers}


def test_all_that_run_meet_at_each_index(run):
    """Once before step 0, twice after it, then once for each step."""
    _, seen, answers = run
    steps = [boundaries[0].step for boundaries, _ in seen]
    assert steps == [0, 1, *range(1, len(steps) - 1)] and len(steps) > 6
    given_up: set[int] = set()
    for number, (boundaries, decided) in enumerate(seen):
        step = boundaries[0].step
        assert {boundary.step for boundary in boundaries} == {step}
        running = {r for r, answer in answers.items() if len(answer.steps) > step}
        found = {boundary.request for boundary in boundaries}
        # An answer may end with the step that is written again, or with its last step.
        assert found - running <= {r for r in found if number == 1 and len(answers[r].steps) == 1}
        assert running - given_up <= found and not found & given_up
        given_up |= {
            boundary.request
            for boundary, answer in zip(boundaries, decided, strict=True)
            if isinstance(answer, Decision) and answer.rest
        }
    assert given_up


def test_each_meeting_is_the_rule_on_the_last_steps(run):
    """Scores of the small model's steps are those of the answers' own tokens."""
    engine, seen, answers = run
    for number, (boundaries, decided) in enumerate(seen[1:], 1):
        steps = []
        for boundary in boundaries:
            own = boundary.signals if boundary.previous == "small" else boundary.large_signals
            assert own is not None
            steps.append(LastStep(boundary.previous or "", own.max_logit))
            answer = answers[boundary.request]
            if number > 1 and boundary.previous == "small":
                step = answer.steps[boundary.step - 1]
                first = step.position - len(answer.prompt_token_ids)
                maths = maths_tokens([engine.tokenizer.bytes_of([i]) for i in step.token_ids])
                logits = [
                    (answer.token_signals or ())[first + i].max_logit
                    for i, counts in enumerate(maths)
                    if counts
                ]
                assert own.max_logit == pytest.approx(fmean(logits))
        expected = decide_batch(steps)
        if number == 1:
            doubtful = [decision.model == "large" for decision in expected]
            assert [isinstance(answer, Rewrite) for answer in decided] == doubtful
            assert [answer is None for answer in decided] == [not each for each in doubtful]
            assert 0 < sum(doubtful) < len(doubtful)
        else:
            assert decided == expected


def test_answers_follow_the_decisions(run):
    """Step 0 is rewritten where it was doubtful, its tokens discarded and counted."""
    _, seen, answers = run
    rewritten = {
        boundary.request: boundary
        for boundary, answer in zip(*seen[1], strict=True)
        if isinstance(answer, Rewrite)
    }
    for request, answer in answers.items():
        again = request in rewritten
        assert answer.steps[0].model == ("large" if again else "small")
        discarded = answer.usage.count("small", "discarded")
        if again:
            assert discarded == rewritten[request].position - len(answer.prompt_token_ids)
            assert answer.steps[0].reason.endswith(": written again")
        else:
            assert discarded == 0
    for boundaries, decided in seen[2:]:
        for boundary, decision in zip(boundaries, decided, strict=True):
            assert isinstance(decision, Decision)
            later = answers[boundary.request].steps[boundary.step :]
            assert not later or later[0].model == decision.model
            assert not decision.rest or {step.model for step in later} <= {"small"}


def test_fewer_than_ten_go_to_the_large_model(engine: Engine):
    large = engine.generate(PROMPTS[:9], PARAMS, "large")
    answers = engine.generate(PROMPTS[:9], PARAMS, "steer-paper")
    assert writers(answers) == writers(large)
    assert answers[0].steps[0].reason == "fewer than 10 requests at this step: 9: written again"
    assert all(answer.usage.count("small", "discarded") > 0 for answer in answers)
    ten = engine.generate(PROMPTS[:10], PARAMS, "steer-paper")
    assert {step.model for answer in ten for step in answer.steps} == {"small", "large"}


def test_two_batches_and_others_at_once(engine: Engine):
    """Each decides as it does alone, and the requests beside them wait for none."""
    first = writers(engine.generate(PROMPTS[:14], PARAMS, SteerPaper()))
    second = writers(engine.generate(PROMPTS[14:30], PARAMS, SteerPaper(Marks(0.2, 0.95))))
    beside = writers(engine.generate(PROMPTS[30:], PARAMS, "steer"))
    policies = [SteerPaper()] * 14 + [SteerPaper(Marks(0.2, 0.95))] * 16 + ["steer"] * 10
    policies[:14], policies[14:30] = [policies[0]] * 14, [policies[14]] * 16
    assert writers(engine.generate(PROMPTS, PARAMS, policies)) == first + second + beside


def test_samples_are_a_batch(engine: Engine):
    params = SamplingParams(max_tokens=60, n=12, temperature=1.5, seed=3)
    answers = engine.generate(PROMPTS[:1], params, "steer-paper")
    reasons = {step.reason for answer in answers for step in answer.steps}
    assert any("P(low)" in reason or "of one kind" in reason for reason in reasons)
    assert not any("requests at this step: 12" in reason for reason in reasons)


@pytest.mark.parametrize("when", [1, 6, 20])
def test_a_lost_request_does_not_stop_the_batch(engine: Engine, when: int):
    policy = SteerPaper()
    requests = [engine.submit(prompt, PARAMS, policy) for prompt in PROMPTS[:14]]
    done: list[Completion] = []
    for tick in range(10000):
        if tick == when:
            engine.abort(requests[3])
        done += engine.step()
        if len(done) == len(requests):
            break
    reasons = {answer.request_id: answer.finish_reason for answer in done}
    assert reasons.pop(requests[3]) == "abort"
    assert set(reasons.values()) == {"stop"}
    engine.scheduler.check_integrity()


@pytest.mark.parametrize(
    "config",
    [
        EngineConfig(max_sequences=4),
        EngineConfig(max_waiting=3, max_sequences=12),
        EngineConfig(arena_tokens=1024),
    ],
    ids=["4 at once", "3 waiting", "little memory"],
)
def test_where_not_all_can_run_at_once(config: EngineConfig):
    """The batch is what runs; nothing waits for what cannot start."""
    engine = Engine("tiny", config=config)
    answers = engine.generate(PROMPTS[:24], PARAMS, "steer-paper")
    assert {answer.finish_reason for answer in answers} == {"stop"}
    engine.scheduler.check_integrity()
    if config.max_sequences == 4:
        assert {step.model for answer in answers for step in answer.steps} == {"large"}


@pytest.mark.parametrize(
    "config",
    [
        EngineConfig(plan_ahead="both"),
        EngineConfig(lane_policy="throughput", hold_ticks=4, gather=4),
        EngineConfig(speculate=4, max_drawn_rows=512),
        EngineConfig(prefix_cache=False, max_tick_tokens=257),
    ],
    ids=["ahead", "throughput", "guessed", "short ticks"],
)
def test_the_ways_of_running_change_nothing(run, config: EngineConfig):
    _, _, expected = run
    answers = Engine("tiny", config=config).generate(PROMPTS, PARAMS, "steer-paper")
    assert writers(answers) == writers(list(expected.values()))


def test_anything_may_happen_to_a_member():
    """KV is taken, requests end, others come: all end, and the core's books are right."""
    engine, lot = Engine("tiny", config=EngineConfig(max_sequences=16, check_every=1)), Random(4)
    policies = [SteerPaper(), SteerPaper(least_running=4), "steer", "small+two-way:0.9"]
    live: list[int] = []
    queued, done = 0, 0
    while queued < 120 or live:
        for _ in range(lot.randint(0, 3) if queued < 120 else 0):
            live.append(engine.submit(lot.choice(PROMPTS), PARAMS, lot.choice(policies)))
            queued += 1
        if live and lot.random() < 0.1:
            victim = lot.choice(live)
            lot.choice([engine.abort, engine.scheduler.preempt])(victim)
        for answer in engine.step():
            assert answer.finish_reason in ("stop", "length", "abort")
            live.remove(answer.request_id)
            done += 1
    assert done == queued


def test_it_does_not_settle_before_it_is_sure(engine: Engine):
    """A stream of one shows what stands: the large model's answer."""
    events = list(engine.stream(PROMPTS[0], PARAMS, "steer-paper"))
    (large,) = engine.generate(PROMPTS[:1], PARAMS, "large")
    assert "".join(event.text for event in events if event.kind == "text") == large.text


def test_a_cap_holds(engine: Engine):
    """Where the large model may write nothing, a step that is written again is the small one's."""
    capped = SamplingParams(max_tokens=80, max_large_share=0.0)
    answers = engine.generate(PROMPTS[:12], capped, "steer-paper")
    assert {step.model for answer in answers for step in answer.steps} == {"small"}
    assert any(step.reason.startswith("budget: ") for answer in answers for step in answer.steps)


@dataclass(frozen=True)
class Broken(Together):
    """Answers something that leads nowhere, from a step on."""

    answer: Answer | str
    since: int = 2
    name: str = "broken"
    reads: bool = False

    def decide_together(self, boundaries: Sequence[Boundary]) -> list[Answer]:
        if self.answer == "raise":
            raise ZeroDivisionError
        if boundaries[0].step < self.since:
            return [Decision("small", "for now") for _ in boundaries]
        answers: list[Answer] = [None for _ in boundaries]
        return answers[1:] if self.answer == "too few" else answers


@pytest.mark.parametrize(
    ("answer", "error", "expected"),
    [
        (None, SteerError, "policy broken must answer each of 3 boundaries with a Decision"),
        ("too few", SteerError, "policy broken must answer each of 3 boundaries"),
        ("raise", ZeroDivisionError, None),
    ],
)
def test_a_broken_policy_ends_its_batch_only(
    engine: Engine, answer: str | None, error: type[Exception], expected: str | None
):
    good = writers(engine.generate(PROMPTS[:2], PARAMS, "steer"))
    with pytest.raises(error, match=expected):
        engine.generate(PROMPTS[:3], PARAMS, Broken(answer))
    broken = Broken(answer)
    others = [engine.submit(prompt, PARAMS, "steer") for prompt in PROMPTS[:2]]
    lost = [engine.submit(prompt, PARAMS, broken) for prompt in PROMPTS[2:5]]
    done: dict[int, Completion] = {}
    raised = 0
    while len(done) < 5:
        try:
            done |= {answer.request_id: answer for answer in engine.step()}
        except error:
            raised += 1
    assert raised == 1
    assert {done[request].finish_reason for request in lost} == {"abort"}
    assert writers([done[request] for request in others]) == good


def test_where_it_cannot_be_used(engine: Engine):
    with pytest.raises(SteerError, match="steer-paper decides for a batch and takes no suffix"):
        make_policy("steer-paper+two-way:0.5")
    with pytest.raises(SteerError, match="expected steer-paper or steer-paper:DOUBTFUL:HOPELESS"):
        make_policy("steer-paper:0.5")
    with pytest.raises(SteerError, match="it cannot be a part of another policy"):
        engine.generate(PROMPTS[:1], PARAMS, Query(SteerPaper()))
    assert make_policy("steer-paper:0.3:0.8") == SteerPaper(Marks(0.3, 0.8))


@pytest.mark.parametrize(
    "build",
    [
        lambda policy: Verify(policy),
        lambda policy: Query(policy),
        lambda policy: TwoWay(policy, 0.5),
        lambda policy: AfterThinking(policy, make_policy("small")),
    ],
)
def test_a_batchs_policy_is_no_part_of_another(build: Callable[[SteerPaper], object]):
    """Said when it is made, not after the first boundary."""
    with pytest.raises(SteerError, match="it cannot be a part of another policy"):
        build(SteerPaper())


def test_nothing_stands_before_the_prompts_end_to_be_rewritten() -> None:
    boundary = Boundary(0, 0, 3, 3, None, 0, None)

    class Early(SteerPaper):
        """Wrong from the beginning."""

        def decide_together(self, boundaries: Sequence[Boundary]) -> list[Answer]:
            return [Rewrite("again") for _ in boundaries]

    with pytest.raises(SteerError, match="no step before the prompt's end"):
        ask(Early(), [boundary])
