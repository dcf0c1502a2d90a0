"""``steer calibrate`` on whether a signal is better than chance, and what to do if none is."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.tasks import arithmetic
from engine import Engine, SamplingParams
from engine.cli import main
from engine.routing.signals import Signals
from engine.tuning.chance import answer_area, chance_lines
from engine.tuning.samples import Sample, observe
from engine.tuning.separability import judge_windows, recommend, windows_for

RIGID = Path(__file__).parents[1] / "data" / "rigid"
RIGID_PAIR = ["--pair=custom", f"--small={RIGID / 'small'}", f"--large={RIGID / 'large'}"]
PROBLEMS = arithmetic.problems("calibration", 60, seed=8)
REMEDY = (
    "use verification (--policy verify:0.3, no calibration needed), a cascade (--policy "
    "cascade:max_prob:0.9) or the large model alone"
)


def written(path: Path, prompts: Sequence[str], answers: Sequence[str] | None) -> str:
    rows = [{"prompt": prompt} for prompt in prompts]
    for row, answer in zip(rows, answers or [], strict=answers is not None):
        row["answer"] = answer
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    prompts = [problem.prompt for problem in PROBLEMS]
    return observe(Engine("tiny"), prompts, SamplingParams(max_tokens=80))


def calibrate(folder: Path, answers: Sequence[str] | None, *flags: str) -> Path:
    output = folder / "c.json"
    path = written(folder / "p.jsonl", [p.prompt for p in PROBLEMS], answers)
    shared = ["--max-tokens=80", f"--output={output}", "--no-plots"]
    assert main(["calibrate", path, *shared, *flags]) == 0
    return output


def test_a_signal_that_finds_wrong_answers(tmp_path: Path, capsys):
    calibrate(tmp_path, [p.answer for p in PROBLEMS])
    out = capsys.readouterr().out
    assert "max_prob over boundary is better than chance at telling its" in out
    assert "95% interval" in out and "verify" not in out


def test_without_answers_it_says_what_it_cannot_see(tmp_path: Path, capsys):
    """With a target the large model's answers take their place."""
    calibrate(tmp_path, None)
    assert "whether it is sure and wrong cannot be seen" in capsys.readouterr().out
    calibrate(tmp_path, None, "--target=share:0.3")
    out = capsys.readouterr().out
    assert "cannot be seen" not in out and "is better than chance" in out


def test_no_signal_is_better_than_chance(tmp_path: Path, capsys, samples: list[Sample]):
    """Whether an answer counts as right is drawn by lot: no signal can know. A file is written."""
    draw = random.Random(2)
    texts = [arithmetic.answer_of(sample.text) for sample in samples]
    output = calibrate(tmp_path, [text if draw.random() < 0.5 else "-1" for text in texts])
    out = capsys.readouterr().out
    assert "warning: max_prob over boundary is no better than chance" in out
    assert f"warning: nor is any of 44 other signals and windows: {REMEDY}" in " ".join(out.split())
    assert output.is_file()


def test_answers_that_are_all_right_tell_nothing(tmp_path: Path, capsys, samples: list[Sample]):
    calibrate(tmp_path, [arithmetic.answer_of(sample.text) for sample in samples])
    assert "all 60 answers of the small model are right: no signal" in capsys.readouterr().out


def test_a_forced_signal_that_is_a_copy(tmp_path: Path, capsys):
    """The rigid steps' first token, with answers; without another finding to compare with."""
    problems = arithmetic.problems("calibration", 60, seed=8, style="rigid")
    path = written(tmp_path / "p.jsonl", [p.prompt for p in problems], [p.answer for p in problems])
    flags = [*RIGID_PAIR, "--max-tokens=120", f"--output={tmp_path / 'c.json'}", "--no-plots"]
    forced = ["--signal=max_prob", "--window=boundary"]
    assert main(["calibrate", path, *flags, *forced]) == 0
    out = capsys.readouterr().out
    assert "warning: max_prob over boundary is no better than chance" in out
    assert f"warning: do not route by it on these prompts: {REMEDY}" in out
    (tmp_path / "c.json").unlink()
    assert main(["calibrate", path, *flags, "--window=boundary"]) == 2
    error = capsys.readouterr().err
    assert error.endswith(f"; {REMEDY}\n") and error.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["p.jsonl"]


def test_another_signal_is_named_where_it_is_better(samples: list[Sample]):
    """Right where the mean logit of a step before is high: not what the boundary says."""
    findings = judge_windows(samples, windows_for(samples))
    chosen = recommend(findings)
    assert chosen is not None
    lows = [min(Signals.mean(step).max_logit for step in s.steps[:-1]) for s in samples]
    right = [low > sorted(lows)[30] for low in lows]
    lines = chance_lines(samples, right, chosen, findings, retokenize=True)
    assert lines[0].startswith("warning: max_prob over boundary is no better than chance")
    assert lines[1].startswith("best by the answers: max_logit over step, AUROC ")
    assert "99.5% interval" in lines[1] and "verify" not in lines[1]  # it needs the same tokens
    area = answer_area(samples, right, "max_logit", "step")
    assert area.better and area.area > 0.95


def test_long_answers_alone_are_not_better_than_chance():
    """Values without sense: longer answers have lower minima, and here more errors."""
    draw = random.Random(4)

    def token() -> Signals:
        value = draw.gauss(0, 1)
        return Signals(0.5, 1.0, 0.0, value, value, value)

    lengths = [draw.choice([2, 12]) for _ in range(300)]
    samples = [Sample(3, tuple((token(),) for _ in range(n)), "") for n in lengths]
    right = [draw.random() > n / 14 for n in lengths]
    area = answer_area(samples, right, "margin", "boundary")
    assert area.low > 0.6 and area.by_chance > 0.6 and not area.better
