"""Tasks made of the embedded pair's formats: difficulty that persists, steps that open quietly."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench import flops, signals
from bench.step_signals.answers import autocorrelation
from bench.tasks import arithmetic, stretches
from bench.tasks.problem import Task
from bench.tasks.registry import ALL, DERIVED, EVERY, TASKS, problems
from engine import Engine, EngineConfig, SamplingParams


def hard(task: Task) -> list[list[float]]:
    drawn = task.problems("test", 600)
    return [[float(kind == "hard") for kind in p.kinds if kind != "copy"] for p in drawn]


def test_hard_operations_come_in_stretches():
    """As often as the mix says, but next to each other; in arithmetic each is drawn by itself."""
    found, plain = hard(DERIVED["stretches"]), hard(TASKS["arithmetic"])
    count = sum(map(len, found))
    assert sum(map(sum, found)) / count == pytest.approx(arithmetic.MIXES["mixed"][2], abs=0.04)
    assert autocorrelation(found) == pytest.approx(stretches.STAY, abs=0.05)
    assert autocorrelation(plain) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("name", DERIVED)
def test_they_are_arithmetic(name: str):
    """In prompts, traces and checkers; each task draws its own; all leaves them out."""
    task = DERIVED[name]
    drawn = task.problems("test", 100, mix="hard")
    for problem in drawn:
        assert problem.task == name and re.fullmatch(r"\d\d([-+*]\d+)+\?\n\n", problem.prompt)
        assert list(problem.steps) == arithmetic.solve(problem.prompt)
        assert len(problem.kinds) == len(problem.steps)
        assert task.is_correct(problem, problem.trace) and not task.first_error(
            problem, problem.trace
        )
    assert drawn != task.problems("test", 100, seed=1, mix="hard")
    assert {p.task for p in problems(ALL, "test", 9)} == {*TASKS} == {*EVERY} - {*DERIVED}


def test_quiet_steps_end_after_an_operator():
    """The engine's steps: an operand, then at most one result, up to the next operator."""
    engine = Engine("tiny", config=EngineConfig(delimiters=DERIVED["quiet"].delimiters))
    drawn = DERIVED["quiet"].problems("test", 20)
    done = engine.generate([p.prompt for p in drawn], SamplingParams(max_tokens=80), "large")
    for problem, completion in zip(drawn, done, strict=True):
        texts = [step.text for step in completion.steps]
        assert completion.text == problem.trace
        assert re.fullmatch(r"\d\d[-+*]", texts[0])
        assert all(re.fullmatch(r"\d+\n\n\d\d[-+*]", text) for text in texts[1:-1])
        assert re.fullmatch(r"\d+\n\n\d\d(<eos>)?", texts[-1])
        assert len(texts) == len(problem.steps)


def measured(folder: Path, task: str) -> tuple[dict[str, Any], dict[tuple[str, str], Any]]:
    file = folder / f"{task}.jsonl"
    assert signals.main([f"--task={task}", "--problems=80", f"--json={file}"]) == 0
    setting, *rows = [json.loads(line) for line in file.read_text().splitlines()]
    return setting, {(row["signal"], row["window"]): row for row in rows}


def test_what_they_are_for(tmp_path: Path):
    """Doubt persists in stretches; of quiet steps the first token tells nothing, a probe all."""
    settings, rows = {}, {}
    for task in ("arithmetic", *DERIVED):
        settings[task], rows[task] = measured(tmp_path, task)
    assert settings["stretches"]["doubt_lag1"] > 0.5 > 0.2 > settings["arithmetic"]["doubt_lag1"]
    first, probe = ("max_prob", "boundary"), ("max_prob", "probe:8:least")
    for task in ("arithmetic", "stretches"):
        assert rows[task][first]["auroc"] > 0.95
    assert rows["quiet"][first]["auroc_high"] < 0.75 < 0.95 < rows["quiet"][probe]["auroc_low"]


def test_the_benches_take_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A threshold on a quiet step's first token hands nothing over; on a probe it does."""
    file = tmp_path / "rows.jsonl"
    policies = "small,threshold:max_prob:0.9,threshold:max_prob:0.9@probe:8:least"
    flags = ["--task=quiet", "--problems=40", f"--policies={policies}", f"--json={file}"]
    assert flops.main(flags) == 0
    large, small, first, probe = [json.loads(line) for line in file.read_text().splitlines()]
    assert first["large_step_share"] < 0.02 and first["accuracy"] == small["accuracy"]
    assert probe["large_step_share"] > 0.1 and probe["accuracy"] >= large["accuracy"] - 0.05
    for bench in (flops, signals):
        capsys.readouterr()
        assert bench.main(["--task=quiet", "--style=rigid"]) == 2
        error = capsys.readouterr().err
        assert error == "error: task quiet is written in style open, got 'rigid'\n"
