"""Problems from a JSON-lines file: ``{"prompt": ..., "answer": ...}`` a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engine.errors import SteerError
from engine.files import parse_json, read_text
from engine.tuning.answers import (
    expected_number,
    final_answer,
    hashed_answer,
    marked_answer,
    matches,
)


@dataclass(frozen=True)
class FileProblem:
    """A prompt, given to the models as it is, the expected answer, and its file and line."""

    prompt: str
    answer: str
    where: str = ""


def read_problems(path: Path) -> list[FileProblem]:
    """All problems of a file. SteerError with file and line on the first bad one.

    Their answers are compared by ``math-verify``: it must be installed before anything runs.
    """
    lines = read_text(path, "dataset file").split("\n")
    problems = [_parse(f"{path}:{n}", line) for n, line in enumerate(lines, 1) if line.strip()]
    if not problems:
        raise SteerError(f"{path}: no problem in this file")
    if find_spec("math_verify") is None:
        raise SteerError(
            f"{path}: scoring needs the math-verify package: pip install 'steer-engine[math]'"
        )
    return problems


def check_disjoint(calibration: Sequence[Any], tests: Sequence[Any]) -> None:
    """SteerError for the first test problem that a calibration problem repeats."""
    first = {p.prompt: p for p in calibration}
    for problem in tests:
        if problem.prompt in first:
            raise SteerError(
                f"{problem.where}: repeats {first[problem.prompt].where}, which calibrates; "
                "a problem must not both calibrate and test"
            )


def _parse(where: str, line: str) -> FileProblem:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise SteerError(f"{where}: not JSON: {error}") from None
    prompt, answer = (row.get(k) if isinstance(row, dict) else None for k in ("prompt", "answer"))
    number = isinstance(answer, int | float) and not isinstance(answer, bool)
    if not isinstance(prompt, str) or not prompt or not (number or isinstance(answer, str)):
        raise SteerError(f'{where}: expected {{"prompt": text, "answer": text or number}}')
    if not str(answer).strip():
        raise SteerError(f"{where}: the answer is empty; leave the problem out or give its answer")
    return FileProblem(prompt, str(answer), where)


def is_correct(problem: FileProblem, text: str) -> bool:
    """Whether a text's final answer is the expected one: plainly, else as ``math-verify`` says.

    Where a number is expected, ``math-verify`` is given only the answer that the text marks: an
    unmarked one is read as in ``engine.tuning.answers``, or "7:30" would be 30.
    """
    if matches(problem.answer, text):
        return True
    if expected_number(problem.answer) is None:
        return _verified(problem.answer, final_answer(text))
    given = marked_answer(text)
    if given is None:
        given = hashed_answer(text)
    return given is not None and _verified(problem.answer, given)


def _verified(expected: str, given: str) -> bool:
    from math_verify import parse, verify

    marked = "\\boxed{" in expected or "####" in expected
    wanted = final_answer(expected) if marked else expected
    gold, answer = (parse(f"${text.strip().strip('$')}$") for text in (wanted, given))
    return bool(gold and answer and verify(gold, answer))
