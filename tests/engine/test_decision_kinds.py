"""Each decision says what it was made on, by one word of a closed set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engine import (
    AfterThinking,
    Boundary,
    Calibration,
    Decision,
    Engine,
    Prompt,
    Random,
    SamplingParams,
    SteerError,
    SteerPaper,
    Threshold,
)
from engine.config import TINY
from engine.requests.decision_log import DecisionLog
from engine.routing.mixture import Mixture
from engine.routing.names import POLICIES
from engine.routing.policy import KINDS
from engine.routing.step_mixtures import PairMixtures, StepMixtures

from .other_pieces import OtherPieces
from .tiny_requests import PARAMS, PROMPTS

SAID = {"sure", "doubtful"}
NAMED = {
    "small": {"fixed"},
    "large": {"fixed"},
    "random": {"drawn"},
    "threshold": SAID,
    "entropy": SAID,
    "max-logit:12": SAID,
    "previous:max_prob:0.95": SAID | {"fixed"},
    "query:max_logit:16": SAID,
    "query-random:0.5": {"drawn"},
    "cascade:max_prob:0.9": SAID,
    "early:2:max_prob:0.9997@so-far:least": SAID | {"fixed"},
    "steer": SAID,
    "steer-cost": SAID,
    "steer-paper": SAID | {"fixed"},
    "steer-served": SAID | {"fixed"},
    "judge": {"fixed", "audit"},
    "audit": {"fixed", "audit"},
    "speculate": {"fixed"},
    "verify": {"fixed"},
    "steer+speculate": SAID,
    "threshold+verify": SAID,
    "small+two-way:0.9": {"fixed"},
    "random:1+two-way:0.99998": {"drawn", "doubtful"},
    "random:0.5+sticky:0.99998": {"drawn", "doubtful"},
}


@pytest.fixture
def decisions(monkeypatch: pytest.MonkeyPatch) -> list[Decision]:
    """All decisions that hold, as the engine notes them."""
    made: list[Decision] = []
    note = DecisionLog.add

    def add(log: DecisionLog, boundary: Boundary, decision: Decision) -> None:
        made.append(decision)
        note(log, boundary, decision)

    monkeypatch.setattr(DecisionLog, "add", add)
    return made


@pytest.fixture
def calibration(engine: Engine) -> Calibration:
    """The embedded one, with mixtures of steps in the middle of what the models reach."""
    fitted = Calibration.load(TINY / "calibration.json", engine.fingerprint)
    shared = Mixture((0.5, 0.5), (13.0, 16.0), (1.0, 1.0))
    mixtures = StepMixtures((), shared)
    return replace(fitted, step_mixtures=PairMixtures(mixtures, mixtures))


def test_every_name_is_tried():
    assert {name.partition(":")[0].partition("+")[0] for name in NAMED} == set(POLICIES)


@pytest.mark.parametrize("name", NAMED)
def test_kinds_of_named_policies(
    name: str, engine: Engine, calibration: Calibration, decisions: list[Decision]
):
    policy = engine.policy(name, calibration)
    if name == "steer-paper":
        policy = replace(policy, least_running=4)
    engine.generate(PROMPTS, PARAMS, policy)
    assert {decision.kind for decision in decisions} == NAMED[name]
    for decision in decisions:
        assert decision.kind != "sure" or decision.model == "small"


def test_kinds_of_a_function_and_of_its_decisions(engine: Engine, decisions: list[Decision]):
    engine.generate(PROMPTS[:1], PARAMS, lambda b: "small" if b.step else Decision("small", "me"))
    assert {decision.kind for decision in decisions} == {"other"}
    decisions.clear()
    engine.generate(PROMPTS[:1], PARAMS, lambda b: Decision("small", "mine", kind="drawn"))
    assert {decision.kind for decision in decisions} == {"drawn"}


def test_a_kind_that_is_none():
    with pytest.raises(SteerError, match=f"must be one of {', '.join(KINDS)}, got 'mood'") as error:
        Decision("small", "mine", kind="mood")
    assert error.value.field == "kind"


def test_parts_of_a_policy_and_few_requests(engine: Engine, decisions: list[Decision]):
    engine.generate(PROMPTS[:2], PARAMS, AfterThinking(Random(0.5), Threshold()))
    assert {decision.kind for decision in decisions} == {"drawn"}
    decisions.clear()
    engine.generate(PROMPTS[:2], PARAMS, SteerPaper())
    assert "fixed" in {decision.kind for decision in decisions}


def test_a_budget(engine: Engine, decisions: list[Decision]):
    engine.generate(PROMPTS[:2], replace(PARAMS, max_large_share=0.4), Random(1.0))
    kinds = {(decision.kind, decision.model) for decision in decisions}
    assert kinds == {("drawn", "large"), ("budget", "small")}


def test_text_that_cannot_cross(tmp_path: Path, decisions: list[Decision]):
    pair = OtherPieces(tmp_path)
    small, large = pair.tokenizers
    prompt = Prompt(tuple(small.encode("1")), tuple(large.encode("1" * 18)))
    pair.engine(max_context=24).generate([prompt], SamplingParams(23), Random(1.0))
    kinds = {(decision.kind, decision.model) for decision in decisions}
    assert kinds == {("drawn", "large"), ("crossing", "small")}
