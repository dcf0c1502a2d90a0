"""The rule with mixtures from a calibration: how they are fitted, stored and used."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from bench.tasks import arithmetic
from engine import Boundary, Calibration, Decision, Engine, SamplingParams, SteerError
from engine.cli import main
from engine.config import TINY
from engine.routing.batch_mixture import Marks
from engine.routing.mixture import Mixture
from engine.routing.names import make_policy
from engine.routing.policy import PolicyBase
from engine.routing.steer_served import SteerServed
from engine.routing.step_mixtures import PairMixtures, StepMixtures
from engine.routing.windows import LAST_STEP, Window
from engine.text.maths import TokenMask, maths_tokens
from tests.engine.tiny_requests import PROMPTS

PARAMS = SamplingParams(max_tokens=80, token_signals=True)
LOW = [10 + i / 10 for i in range(10)]
HIGH = [20 + i / 10 for i in range(10)]


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """A calibration by the command, on 120 prompts."""
    folder = tmp_path_factory.mktemp("served")
    problems = arithmetic.problems("calibration", 120, seed=8)
    rows = [json.dumps({"prompt": problem.prompt}) for problem in problems]
    (folder / "prompts.jsonl").write_text("\n".join(rows))
    flags = ["--max-tokens=80", "--no-plots", "--step-mixtures", f"--output={folder / 'c.json'}"]
    assert main(["calibrate", str(folder / "prompts.jsonl"), *flags]) == 0
    return folder / "c.json"


@pytest.fixture
def calibration(path: Path, engine: Engine) -> Calibration:
    return Calibration.load(path, engine.fingerprint)


def test_indexes_with_few_steps_share_one():
    """30 are enough; what has fewer is fitted together, or if that is too little with all."""
    many = (LOW + HIGH) * 2
    few = [value + 100 for value in many]
    mixtures = StepMixtures.fit({0: many, 1: few[:29], 3: few[:30], 4: few[:29]})
    assert [each is not None for each in mixtures.by_step] == [True, False, False, True]
    assert mixtures.at(0).means == pytest.approx((10.45, 20.45))
    assert mixtures.at(3).means[0] > 100
    assert mixtures.at(1) is mixtures.at(2) is mixtures.at(4) is mixtures.at(99) is mixtures.shared
    assert mixtures.shared.means == pytest.approx((fmean(few[:10]), fmean(few[10:20])), abs=0.1)
    alone = StepMixtures.fit({0: many, 1: few[:29]})
    assert alone.shared != alone.at(0) and alone.shared.means[0] < 100  # of all 69
    assert StepMixtures.fit({0: [5.0] * 30, 1: many}).by_step[0] is None  # all of one kind


@pytest.mark.parametrize("scores", [{}, {0: (LOW + HIGH)}, {0: [5.0] * 30, 1: [5.0] * 30}])
def test_too_little_to_fit(scores: dict[int, list[float]]):
    with pytest.raises(SteerError, match="of which no two kinds can be told apart: at least 30"):
        StepMixtures.fit(scores)


@dataclass(frozen=True)
class Noting(PolicyBase):
    """Another policy that keeps its boundaries and decisions."""

    policy: SteerServed
    seen: list[tuple[Boundary, Decision]] = field(default_factory=list)
    name: str = "noting"
    window: Window = LAST_STEP
    needs_large_signals: bool = True
    mask: TokenMask = maths_tokens

    def decide(self, boundary: Boundary) -> Decision:
        decision = self.policy.decide(boundary)
        self.seen.append((boundary, decision))
        return decision


def p_low(mixture: Mixture, value: float) -> float:
    """By Bayes, flat beyond the means."""
    value = min(max(value, mixture.means[0]), mixture.means[1])
    low, high = (
        w / s * math.exp(-(((value - m) / s) ** 2) / 2)
        for w, m, s in zip(mixture.weights, mixture.means, mixture.deviations, strict=True)
    )
    return low / (low + high)


def test_each_decision_is_the_rule_on_the_step_before(engine: Engine, calibration: Calibration):
    """The score from the tokens' signals, P(low) by Bayes, then the two marks."""
    mixtures = calibration.step_mixtures
    assert mixtures is not None
    noting = Noting(SteerServed(calibration))
    answers = {a.request_id: a for a in engine.generate(PROMPTS, PARAMS, noting)}
    branches = set()
    for boundary, decision in noting.seen:
        answer = answers[boundary.request]
        if boundary.previous is None:
            assert decision.model == "small"
            continue
        step = answer.steps[boundary.step - 1]
        assert step.model == boundary.previous
        if step.model == "small":
            first = step.position - len(answer.prompt_token_ids)
            own = (answer.token_signals or ())[first : first + len(step.token_ids)]
            maths = maths_tokens([engine.tokenizer.bytes_of([i]) for i in step.token_ids])
            logits = [s.max_logit for s, counts in zip(own, maths, strict=True) if s and counts]
            assert boundary.signals and boundary.signals.max_logit == pytest.approx(fmean(logits))
            score = fmean(logits)
        else:
            assert boundary.large_signals
            score = boundary.large_signals.max_logit
        low = p_low(mixtures.at(step.model, boundary.step - 1), score)
        assert decision.posterior == pytest.approx(1 - low, abs=1e-6)
        given_up = step.model == "large" and low > 0.9
        assert decision.model == ("small" if low <= 0.4 or given_up else "large")
        assert decision.rest == given_up
        branches.add((step.model, decision.model, decision.rest))
    assert {("small", "small", False), ("small", "large", False), ("large", "small", False)} <= (
        branches
    )


def test_a_problem_is_given_up_and_kept(engine: Engine, calibration: Calibration):
    """With marks that any doubt passes: after one large step the small one writes the rest; or,
    where only the first mark is passed, the large one goes on."""
    given_up = engine.generate(PROMPTS[:4], PARAMS, SteerServed(calibration, Marks(0, 0)))
    kept = engine.generate(PROMPTS[:4], PARAMS, SteerServed(calibration, Marks(0, 1)))
    for first, second in zip(given_up, kept, strict=True):
        models = [step.model for step in first.steps]
        assert models == ["small", "large", *["small"] * (len(models) - 2)]
        assert "too hard for the large model too" in first.steps[2].reason
        assert second.steps[1].model == "large"
        for step in second.steps[2:]:
            assert step.model == "large" or step.reason == "P(low) 0.000 <= 0"


def test_no_batch_is_needed(engine: Engine, calibration: Calibration):
    together = engine.generate(PROMPTS, PARAMS, engine.policy("steer-served", calibration))
    for prompt, answer in zip(PROMPTS[:4], together, strict=False):
        (alone,) = engine.generate([prompt], PARAMS, engine.policy("steer-served", calibration))
        assert [(s.model, s.text) for s in alone.steps] == [(s.model, s.text) for s in answer.steps]


def test_a_step_without_maths_reads_as_low(engine: Engine, calibration: Calibration):
    nothing = SteerServed(calibration, mask=lambda tokens: [False] * len(tokens))
    (answer,) = engine.generate(PROMPTS[:1], PARAMS, nothing)
    assert [step.model for step in answer.steps[:2]] == ["small", "large"]
    assert "P(low) " in answer.steps[1].reason


def test_the_file_reads_back(path: Path, calibration: Calibration, engine: Engine, tmp_path: Path):
    raw = json.loads(path.read_text())
    assert set(raw["step_mixtures"]) == {"small", "large"}
    counts = raw["provenance"]["step_mixtures"]["steps"]
    for role in ("small", "large"):
        enough = [count >= 30 for count in counts[role]]
        own = [each is not None for each in raw["step_mixtures"][role]["by_step"]]
        assert any(own) and own == enough[: len(own)] and not any(enough[len(own) :])
    calibration.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == path.read_text()


def test_a_file_without_stays_as_it_was(engine: Engine, tmp_path: Path):
    old = Calibration.load(TINY / "calibration.json", engine.fingerprint)
    old.save(tmp_path / "c.json")
    assert (tmp_path / "c.json").read_text() == (TINY / "calibration.json").read_text()
    with pytest.raises(SteerError, match="steer-served needs a calibration with mixtures by step"):
        engine.policy("steer-served")
    with pytest.raises(SteerError, match="policy steer-served needs a calibration of this pair"):
        make_policy("steer-served")


BAD: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda raw: raw.update(step_mixtures=[]), "not a calibration file"),
    (lambda raw: raw.update(step_mixtures="x"), "not a calibration file"),
    (lambda raw: raw["step_mixtures"].pop("large"), "not a calibration file: 'large'"),
    (lambda raw: raw["step_mixtures"]["small"].pop("shared"), "not a calibration file: 'shared'"),
    (lambda raw: raw["step_mixtures"]["small"].update(by_step=7), "not a calibration file"),
    (lambda raw: raw["step_mixtures"]["small"].update(by_step=[7]), "not a calibration file"),
    (lambda raw: raw["step_mixtures"]["large"]["shared"].update(means=[1]), "not a calibration"),
    (lambda raw: raw["step_mixtures"]["large"]["shared"].update(means=[2, 1]), "lower mean first"),
    (lambda raw: raw["step_mixtures"]["large"]["shared"].update(weights=[0, 1]), "above 0"),
]


@pytest.mark.parametrize(("change", "expected"), BAD)
def test_a_wrong_file_is_refused_in_one_line(
    change: Callable[[dict[str, Any]], Any],
    expected: str,
    path: Path,
    engine: Engine,
    tmp_path: Path,
    capsys,
):
    raw = json.loads(path.read_text())
    change(raw)
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(raw))
    with pytest.raises(SteerError) as error:
        Calibration.load(wrong, engine.fingerprint)
    assert expected in str(error.value) and "\n" not in str(error.value)
    flags = ["--policy=steer-served", f"--calibration={wrong}"]
    assert main(["generate", PROMPTS[0], *flags]) == 2
    assert str(error.value) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("steer-served:0.4", "expected steer-served or steer-served:DOUBTFUL:HOPELESS"),
        ("steer-served:a:b", "expected steer-served or steer-served:DOUBTFUL:HOPELESS"),
        ("steer-served:0.9:0.4", "marks must be in [0, 1], the first at most the second"),
    ],
)
def test_bad_names(name: str, expected: str, calibration: Calibration):
    with pytest.raises(SteerError) as error:
        make_policy(name, calibration)
    assert expected in str(error.value)


def test_names(calibration: Calibration):
    assert make_policy("steer-served:0.3:0.8", calibration) == SteerServed(
        calibration, Marks(0.3, 0.8)
    )
    both = make_policy("steer-served+two-way:0.5", calibration)
    assert both.name == "steer-served+two-way" and both.mask is maths_tokens


def test_the_command_says_what_it_lacks(tmp_path: Path, capsys):
    problems = arithmetic.problems("calibration", 12, seed=8)
    rows = [json.dumps({"prompt": problem.prompt}) for problem in problems]
    (tmp_path / "few.jsonl").write_text("\n".join(rows))
    few, output = str(tmp_path / "few.jsonl"), tmp_path / "c.json"
    flags = ["--max-tokens=12", "--no-plots", "--step-mixtures", f"--output={output}"]
    forced = ["--signal=max_prob", "--window=boundary"]
    assert main(["calibrate", few, *flags, *forced]) == 2
    assert "mixtures by step, " in capsys.readouterr().err and not output.exists()
    assert main(["calibrate", few, *flags, "--retokenize"]) == 2
    assert "--step-mixtures cannot go with --retokenize" in capsys.readouterr().err


def test_a_pair_of_mixtures_can_be_compared_and_hashed():
    one = StepMixtures((None,), Mixture((0.5, 0.5), (0.0, 1.0), (1.0, 1.0)))
    both = PairMixtures(one, one)
    assert PairMixtures.from_json(json.loads(json.dumps(both.to_json()))) == both
    assert hash(both) == hash(replace(both))
