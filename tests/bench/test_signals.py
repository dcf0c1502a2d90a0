"""bench.signals: labels against runs of their own, values against a policy, rows, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import signals
from bench.evaluate import TestSet, task_tests
from bench.step_signals.answers import autocorrelation, observe_answers
from bench.step_signals.continuations import Outcomes, continue_answers
from bench.step_signals.rows import Labelled
from bench.step_signals.scores import maths_mask
from bench.step_signals.takeover import by_oracle, caught_at, takeover_curve
from bench.tasks.registry import TASKS
from engine import AuditOnly, Boundary, Completion, Decision, Engine, EngineConfig, SamplingParams
from engine.routing.audit import step_score
from engine.tuning.ranking import auroc, auroc_interval

PROBLEMS = 40
PARAMS = SamplingParams(max_tokens=80)


@pytest.fixture(scope="module")
def tests() -> TestSet:
    return task_tests("test", PROBLEMS, seed=5)


@pytest.fixture(scope="module")
def labelled(tests: TestSet) -> Labelled:
    engine = Engine("tiny")
    answers = observe_answers(engine, tests, PARAMS)
    outcomes = [Outcomes() for _ in answers]
    continue_answers(engine, tests, answers, outcomes, PARAMS)
    return Labelled(answers, outcomes, maths_mask(engine))


def test_outcomes_are_those_of_separate_runs(labelled: Labelled, tests: TestSet):
    """Each step's continuation by a run of its own, without a cache; fewer runs were needed."""
    engine = Engine("tiny", config=EngineConfig(prefix_cache=False))
    for index in range(0, PROBLEMS, 5):
        answer, outcome = labelled.answers[index], labelled.outcomes[index]
        done = answer.completion
        problem = tests.problems[index]
        expected = []
        for step in done.steps:
            written = step.position - len(done.prompt_token_ids)
            prompt = [*done.prompt_token_ids, *done.token_ids[:written]]
            (rest,) = engine.generate([prompt], SamplingParams(max_tokens=80 - written), "large")
            before = engine.tokenizer.text_of(done.token_ids[:written])
            expected.append(tests.is_correct(problem, before + rest.text))
        assert outcome.right == [*expected, tests.is_correct(problem, done.text)]
    assert sum(o.runs for o in labelled.outcomes) < sum(a.steps for a in labelled.answers) / 2


def test_the_first_wrong_step_is_the_checkers(labelled: Labelled, tests: TestSet):
    """The large model makes no mistake here, and a wrong value never becomes right again."""
    found = 0
    for index, outcome in enumerate(labelled.outcomes):
        text = labelled.answers[index].completion.text
        first = TASKS["arithmetic"].first_error(tests.problems[index], text)
        assert outcome.first_wrong == first
        if first is not None:
            assert labelled.labels[index][first + 1 :] == [None] * (len(outcome.right) - first - 2)
            found += 1
    assert found > 10


def test_the_reading_is_an_audits(labelled: Labelled, tests: TestSet):
    """Scores of the large model's reading against those that a run with an audit keeps."""
    engine = Engine("tiny")
    read = engine.generate(tests.prompts(engine), PARAMS, AuditOnly(-1e6))
    seen = 0
    for own, done in zip(labelled.scores, read, strict=True):
        for scores, step in zip(own, done.steps, strict=True):
            for kind in ("min", "mean", "ratio"):
                expected = step_score(kind, step.audit)
                assert scores[kind, "read"] == pytest.approx(expected, abs=1e-3)
            assert (scores["disbelieved", "read"] == np.inf) == (
                scores["worst", "read"] >= np.log(0.3)
            )
            seen += 1
    assert seen == sum(a.steps for a in labelled.answers) > 200


def test_windows_of_a_step(labelled: Labelled):
    """A probe's least is the least of the step's first tokens; of the first step none is before."""
    answer, scores = labelled.answers[0], labelled.scores[0]
    tokens = answer.signals(1)
    assert scores[1]["max_prob", "boundary"] == tokens[0].max_prob
    assert scores[1]["margin", "probe:4:least"] == min(t.margin for t in tokens[:4])
    assert scores[1]["entropy", "whole"] == pytest.approx(-np.mean([t.entropy for t in tokens]))
    assert scores[2]["max_logit", "step:least"] == min(t.max_logit for t in tokens)
    assert ("max_prob", "step") not in scores[0]
    ids = answer.completion.steps[1].token_ids
    maths = [
        t.max_logit for t, counts in zip(tokens, labelled.is_maths(ids), strict=True) if counts
    ]
    assert 0 < len(maths) < len(tokens)  # a delimiter is none
    assert scores[1]["max_logit", "whole:maths"] == pytest.approx(np.mean(maths))


def test_the_value_is_what_a_policy_reaches(labelled: Labelled, tests: TestSet):
    """A policy that hands over for good at the first unsure boundary: accuracy and share."""
    name = ("max_prob", "boundary")
    scores = [[step[name] for step in own] for own in labelled.scores]
    shares, accuracies = takeover_curve(scores, labelled.outcomes)
    marks = [-np.inf, *np.unique(np.concatenate([np.array(own) for own in scores]))]
    place = len(marks) // 8
    mark = (marks[place] + marks[place + 1]) / 2

    def decide(boundary: Boundary) -> Decision | str:
        assert boundary.signals is not None
        if boundary.signals.max_prob < mark:
            return Decision("large", "unsure", rest=True)
        return "small"

    engine = Engine("tiny")
    done = engine.generate(tests.prompts(engine), PARAMS, decide)
    right = [tests.is_correct(p, c.text) for p, c in zip(tests.problems, done, strict=True)]
    assert accuracies[0] < np.mean(right) == accuracies[place]
    large = sum(step.model == "large" for each in done for step in each.steps)
    assert large / sum(len(each.steps) for each in done) == pytest.approx(shares[place])
    assert by_oracle(labelled.outcomes, 1.0) == np.mean([o.right[0] for o in labelled.outcomes])


def test_caught_by_hand():
    """The two lowest of four have one wrong of two; of a tie any may be drawn."""
    wrong = [True, False, True, False]
    assert caught_at([1, 2, 3, 4], wrong, 0.25) == 0.5
    assert caught_at([1, 2, 3, 4], wrong, 0.5) == 0.5
    assert caught_at([7, 7, 7, 7], wrong, 0.25) == 0.25
    assert np.isnan(caught_at([1.0, 2.0], [False, False], 0.5))


def test_autocorrelation_of_chains():
    """Of two states that stay with chance 0.9 it is 0.8; of independent draws near 0."""
    rng = np.random.default_rng(3)
    for stay, expected in ((0.9, 0.8), (0.5, 0.0)):
        turns = rng.random((400, 30)) > stay
        chains = (np.cumsum(turns, axis=1) + rng.integers(2, size=(400, 1))) % 2
        assert autocorrelation(chains.tolist()) == pytest.approx(expected, abs=0.03)
    assert np.isnan(autocorrelation([[1.0, 1.0]]))


def test_an_interval_is_by_group():
    """Copies of each item in its group change nothing; as groups of their own they narrow it."""
    rng = np.random.default_rng(1)
    wrong = rng.random(120) < 0.3
    scores = rng.normal(size=120) - wrong
    groups = np.arange(120)
    area, low, high = auroc_interval(scores.tolist(), wrong.tolist(), groups.tolist())
    assert low < area < high and area == auroc(scores.tolist(), wrong.tolist())
    often = np.repeat(np.stack([scores, wrong, groups]), 9, axis=1)
    same = auroc_interval(*often.tolist()[:2], often[2].astype(int).tolist())
    assert same == pytest.approx((area, low, high))
    alone = auroc_interval(*often.tolist()[:2], list(range(often.shape[1])))
    assert alone[2] - alone[1] < (high - low) / 2
    assert np.isnan(auroc_interval([1.0, 2.0], [1, 1], [0, 1])[0])


def test_rows_the_table_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file, picture = tmp_path / "rows.jsonl", tmp_path / "areas.png"
    flags = ["--task=hops", "--problems=12", f"--json={file}", f"--plot={picture}"]
    assert signals.main(flags) == 0
    setting, *rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert setting["kind"] == "setting" and setting["task"] == "hops-open" and setting["n"] == 12
    assert setting["wrong"] <= setting["judged"] <= setting["steps"]
    assert setting["unread"] == 0 and setting["small_accuracy"] < setting["large_accuracy"]
    assert len({(r["signal"], r["window"]) for r in rows}) == len(rows) > 60
    assert all(r["auroc_low"] <= r["auroc"] <= r["auroc_high"] for r in rows)
    out = capsys.readouterr().out
    assert "12 answers of the small model" in out and "caught at 10%" in out
    first = next(line for line in out.splitlines() if "read" in line)
    assert " 1.000 " in first
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_finished_answers_survive_an_interrupt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    steps, real = iter(range(60)), Engine.step

    def step(engine: Engine) -> list[Completion]:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return real(engine)

    monkeypatch.setattr(Engine, "step", step)
    file = tmp_path / "rows.jsonl"
    assert signals.main(["--problems=40", "--at-once=8", f"--json={file}"]) == 130
    setting, *rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert 0 < setting["n"] < 40 and rows
    said = capsys.readouterr()
    assert said.err == "interrupted: what is shown is of the answers that were finished\n"
    assert f"{setting['n']} answers of the small model" in said.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--problems=0"], "--problems must be at least 1, got 0"),
        (["--at-once=0"], "--at-once must be at least 1, got 0"),
        (["--small=x"], "--small and --large go together"),
        (["--mix=heavy"], "--mix must be one of light, mixed, hard, got 'heavy'"),
        (["--small=x", "--large=y", "--seed=1"], "--mix and --seed draw embedded problems"),
        (["--max-tokens=0"], "max_tokens must be at least 1, got 0"),
        (["--plot=a.gif"], "expected a file name that ends in .png, .svg, .pdf"),
        (["--json=no/such/folder/f"], "--json"),
    ],
)
def test_bad_flags_get_one_line(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert signals.main(flags) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
