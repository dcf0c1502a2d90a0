"""The large model's own signals on boundaries, and the policies that listen to them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median
from types import SimpleNamespace

import pytest

from engine import Boundary, Completion, Decision, Engine, Random, SamplingParams, SteerError, Step
from engine.replay.replay import replay
from engine.replay.trace import Trace
from engine.routing.names import make_policy
from engine.routing.policies import Early, Query, Threshold
from engine.routing.policy import PolicyBase
from engine.routing.signals import Signals
from engine.routing.two_way import Sticky, TwoWay
from engine.routing.windows import LAST_STEP, Window
from tests.engine.tiny_requests import PROMPTS

PARAMS = SamplingParams(max_tokens=80, logprobs=1, token_signals=True, temperature=0.7, seed=5)


@dataclass(frozen=True)
class Noting(PolicyBase):
    """Half of the steps by each model; keeps the boundaries."""

    needs_large_signals: bool = True
    seen: list[Boundary] = field(default_factory=list)
    name: str = "noting"
    reads: bool = False

    def decide(self, boundary: Boundary) -> Decision:
        self.seen.append(boundary)
        return Random(0.5).decide(boundary)


def certainty(answer: Completion, step: Step) -> float:
    """The mean of the writer's highest probability over a step, from the log-probabilities."""
    first = step.position - len(answer.prompt_token_ids)
    tokens = (answer.logprobs or ())[first : first + len(step.token_ids)]
    return fmean(math.exp(token.top[0][1]) for token in tokens)


def pairs(answers: list[Completion]) -> list[tuple[Completion, Step, Step]]:
    """Each step with the one before it."""
    return [(a, old, new) for a in answers for old, new in pairwise(a.steps)]


def middle(engine: Engine) -> float:
    """Half of the large model's steps are less sure."""
    alone = engine.generate(PROMPTS, PARAMS, "large")
    return median(certainty(answer, step) for answer in alone for step in answer.steps)


@pytest.mark.parametrize("guessed", ["", "+speculate:3", "+speculate:5:lookup"])
def test_boundaries_carry_the_large_models_signals(engine: Engine, guessed: str):
    """The mean over its last step, also where one pass drew several of the tokens."""
    noting = Noting()
    policy = noting if not guessed else make_policy("small" + guessed)
    if guessed:
        policy = type(policy)(noting, policy.speculation.tokens, policy.speculation.source)
    answers = engine.generate(PROMPTS, PARAMS, policy)
    expected = {
        (answer.request_id, new.position): certainty(answer, old)
        for answer, old, new in pairs(answers)
        if old.model == "large"
    }
    found = {
        (b.request, b.position): b.large_signals.max_prob for b in noting.seen if b.large_signals
    }
    assert len(expected) > 20 and len(set(expected.values())) > 10
    assert found == pytest.approx(expected, abs=1e-5)
    if guessed:
        assert sum(answer.usage.speculated.accepted for answer in answers) > 0


def test_who_does_not_ask_gets_none(engine: Engine):
    noting = Noting(needs_large_signals=False)
    engine.generate(PROMPTS, PARAMS, noting)
    assert any(b.previous == "large" for b in noting.seen)
    assert not any(b.large_signals for b in noting.seen)


RULES = [
    (base, suffix)
    for suffix in ("two-way", "sticky")
    for base in ("large", "threshold:max_prob:0.9", "random:0.5", "previous")
    if (base, suffix) != ("large", "sticky")  # it has the rest anyway
]


@pytest.mark.parametrize(("base", "suffix"), RULES)
def test_the_rule(engine: Engine, base: str, suffix: str):
    """After an unsure step of the large model the suffix decides, elsewhere the other policy."""
    least = middle(engine)
    answers = engine.generate(PROMPTS, PARAMS, f"{base}+{suffix}:{least}")
    by_doubt = 0
    for answer, old, new in pairs(answers):
        own = certainty(answer, old)
        if old.model == "large" and own < least:
            assert new.model == {"two-way": "small", "sticky": "large"}[suffix]
            said = re.match(r"the large model's own max_prob ([0-9.e-]+) < ", new.reason)
            assert said and float(said[1]) == pytest.approx(own, rel=1e-3)
            by_doubt += 1
        else:
            assert "own max_prob" not in new.reason
            if base == "threshold:max_prob:0.9":
                assert new.signals and (new.model == "small") == (new.signals.max_prob >= 0.9)
            if base == "large":
                assert new.model == "large"
    # "previous" never hands a step over twice in a row, the others do.
    assert by_doubt > 5 or base == "previous"


def test_the_last_suffix_is_asked_first(engine: Engine):
    """Doubt below both marks goes to the one that stands last, as in STEER's own rule."""
    least = middle(engine)
    answers = engine.generate(PROMPTS, PARAMS, f"random:0.5+sticky:1+two-way:{least}")
    reasons = set()
    for answer, old, new in pairs(answers):
        if old.model == "large":
            own = certainty(answer, old)
            assert new.model == ("small" if own < least else "large") or own > 1 - 1e-6
            reasons.add(new.reason.rpartition(": ")[2])
    assert reasons >= {"the small one writes on", "it keeps the pen"}


def test_a_small_answer_is_as_without(engine: Engine):
    plain, both = (
        engine.generate(PROMPTS[:3], PARAMS, name) for name in ("small", "small+two-way:1+sticky:1")
    )
    assert [a.text for a in plain] == [a.text for a in both]


def test_names():
    made = make_policy("threshold:max_prob:0.9@probe:3+two-way:0.8+speculate:2+sticky:0.7")
    assert isinstance(made, Sticky) and made.least == 0.7
    assert made.name == "threshold+two-way+speculate+sticky"
    assert made.window == Window("probe", 3) and made.reads and made.needs_large_signals
    assert made.speculation and made.speculation.tokens == 2
    judge = make_policy("judge:-6+two-way:0.8")
    assert (
        isinstance(judge, TwoWay) and judge.reader == "large" and judge.audit == judge.asked.audit
    )
    early = make_policy("early:3:entropy:0.2@so-far:least")
    assert early == Early("entropy", 0.2, window=Window("so-far", least=True), steps=3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("large+two-way", "expected +two-way:P with a probability P"),
        ("large+sticky:x", "expected +sticky:P with a probability P"),
        ("large+sticky:0.5:1", "expected +sticky:P with a probability P"),
        ("large+two-way:1.5", "two-way: a mean probability is in [0, 1], got 1.5"),
        ("large+two-way:nan", "two-way: a mean probability is in [0, 1], got nan"),
        ("query:max_prob:0.5+two-way:0.5", "two-way cannot go with query, which decides once"),
        ("early:2:max_prob:0.5+sticky:0.5", "sticky cannot go with early, which decides once"),
        ("cascade+speculate+sticky:0.5", "cannot go with cascade+speculate, which decides once"),
        ("audit:-6+two-way:0.5", "two-way cannot go with audit, which decides once"),
        ("two-way:0.5", "unknown policy 'two-way:0.5'"),
        ("early", "expected early:STEPS:SIGNAL:VALUE"),
        ("early:2", "expected early:STEPS:SIGNAL:VALUE"),
        ("early:x:max_prob:0.5", "expected early:STEPS:SIGNAL:VALUE"),
        ("early:0:max_prob:0.5", "a whole number of steps, 1 or more; got 0"),
        ("early:2:max_prob:1.5", "max_prob is in [0, 1], got 1.5"),
        ("early:2:max_prob:0.5@step", "early looks at so-far, not step"),
        ("early:2:sureness:0.5", "unknown signal 'sureness'"),
    ],
)
def test_bad_names(name: str, expected: str):
    with pytest.raises(SteerError) as error:
        make_policy(name)
    assert expected in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("least", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_early(engine: Engine, count: int, least: bool):
    """The small model's first steps, all of their tokens, decide for the rest."""
    summary, window = (Signals.least if least else Signals.mean), f"so-far{':least' * least}"
    alone = engine.generate(PROMPTS, PARAMS, "small")

    def first(answer: Completion) -> float:
        tokens = sum(len(step.token_ids) for step in answer.steps[:count])
        return summary([s for s in (answer.token_signals or ())[:tokens] if s]).max_prob

    mark = median(map(first, alone))
    answers = engine.generate(PROMPTS, PARAMS, f"early:{count}:max_prob:{mark}@{window}")
    for answer, expected in zip(answers, alone, strict=True):
        models = [step.model for step in answer.steps]
        assert models[:count] == ["small"] * len(models[:count])
        sure = first(answer) >= mark
        assert set(models[count:]) <= {"small" if sure else "large"}
        if sure:
            assert answer.text == expected.text
    assert len({answer.steps[-1].model for answer in answers}) == 2


def test_a_mask_chooses_the_tokens(engine: Engine):
    """Of both models' signals; and one of a wrong length is refused in one line."""
    digits: list[list[bytes]] = []

    def isdigit(tokens: list[bytes]) -> list[bool]:
        digits.append(list(tokens))
        return [token.isdigit() for token in tokens]

    @dataclass(frozen=True)
    class Masked(Noting):
        window: Window = LAST_STEP
        mask = staticmethod(isdigit)

    noting = Masked()
    (answer,) = engine.generate(PROMPTS[:1], PARAMS, noting)
    assert b"".join(digits[0]) == answer.steps[0].text.encode()
    for boundary, step in zip(noting.seen[1:], answer.steps, strict=False):
        first = step.position - len(answer.prompt_token_ids)
        places = [
            first + i
            for i, token in enumerate(step.token_ids)
            if engine.tokenizer.bytes_of([token]).isdigit()
        ]
        if step.model == "small":
            own = [(answer.token_signals or ())[place] for place in places]
            assert boundary.signals == Signals.mean([s for s in own if s])
            assert boundary.large_signals is None
        else:
            sure = [math.exp((answer.logprobs or ())[place].top[0][1]) for place in places]
            assert boundary.large_signals and boundary.signals is None
            assert boundary.large_signals.max_prob == pytest.approx(fmean(sure), abs=1e-5)
    assert {b.previous for b in noting.seen} == {None, "small", "large"}

    @dataclass(frozen=True)
    class Short(Masked):
        mask = staticmethod(lambda tokens: [True])

    with pytest.raises(SteerError, match="a mask must have an entry for each of the"):
        engine.generate(PROMPTS[:1], PARAMS, Short())


def test_a_users_object_may_ask(engine: Engine):
    """Of no class of the library: the two names are enough."""
    seen: list[Boundary] = []
    asking = SimpleNamespace(
        name="mine",
        reads=False,
        decide=lambda b: seen.append(b) or Random(0.5).decide(b),
        needs_large_signals=True,
    )
    noting = Noting()
    for policy in (asking, noting):
        engine.generate(PROMPTS[:3], PARAMS, policy)
    assert any(b.large_signals for b in seen)
    assert {type(b.large_signals) for b in seen} == {Signals, type(None)}
    asking.mask = "digits"
    with pytest.raises(SteerError, match="a policy's mask must be a function or None"):
        engine.generate(PROMPTS[:1], PARAMS, asking)


def test_early_is_replayed_where_the_trace_has_its_signals(engine: Engine, tmp_path):
    path = tmp_path / "trace.jsonl"
    engine.generate(PROMPTS, PARAMS, "early:3:max_prob:0.99", trace=path)
    trace = Trace.read(path)
    assert trace.window == "so-far"
    assert replay(trace, make_policy("early:3:max_prob:0.99")).changed == 0
    assert replay(trace, make_policy("early:1:max_prob:1")).large_step_share > 0.5
    with pytest.raises(SteerError, match="step 4: the trace has no signals there"):
        replay(trace, make_policy("early:5:max_prob:0.99"))


def test_what_a_replay_lacks(engine: Engine, tmp_path):
    path = tmp_path / "trace.jsonl"
    engine.generate(PROMPTS[:2], PARAMS, "threshold+two-way:0.9", trace=path)
    trace = Trace.read(path)
    assert replay(trace, Threshold()).requests == 2
    with pytest.raises(SteerError, match="needs the large model's own signals: no trace holds"):
        replay(trace, make_policy("threshold+two-way:0.9"))
    with pytest.raises(SteerError, match="which decides once"):
        TwoWay(Query(Threshold()), 0.5)
