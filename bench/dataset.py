"""Problems from a JSON-lines file: ``{"prompt": ..., "answer": ...}`` a line."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engine.errors import SteerError
from engine.files import read_text

_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")


@dataclass(frozen=True)
class FileProblem:
    """A prompt, given to the models as it is, the expected answer, and its file and line."""

    prompt: str
    answer: str
    where: str = ""


def read_problems(path: Path) -> list[FileProblem]:
    """All problems of a file. SteerError with file and line on the first bad one.

    Their answers are compared by ``math-verify``: it must be there before anything runs.
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
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise SteerError(f"{where}: not JSON: {error}") from None
    prompt, answer = (row.get(k) if isinstance(row, dict) else None for k in ("prompt", "answer"))
    number = isinstance(answer, int | float) and not isinstance(answer, bool)
    if not isinstance(prompt, str) or not prompt or not (number or isinstance(answer, str)):
        raise SteerError(f'{where}: expected {{"prompt": text, "answer": text or number}}')
    if not str(answer).strip():
        raise SteerError(f"{where}: the answer is empty")
    return FileProblem(prompt, str(answer), where)


def answer_of(text: str) -> str:
    """The last boxed answer, else what follows the last ####, else the last number or line."""
    for found in (_boxed(text), text.rpartition("####")[2] if "####" in text else ""):
        if found.strip():
            return found.strip()
    numbers = _NUMBER.findall(text)
    lines = text.strip().splitlines()
    return str(numbers[-1]) if numbers else lines[-1] if lines else ""


def _boxed(text: str) -> str:
    start = text.rfind("\\boxed{")
    if start < 0:
        return ""
    depth, begin = 0, start + len("\\boxed")
    for end in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[begin + 1 : end]
    return ""


def is_correct(problem: FileProblem, text: str) -> bool:
    """Whether the answers are equal as numbers, as text but for case and outer marks, or as maths.

    The expected answer is read like the given one if it is boxed or follows ####. Words are also
    right as the last word of the text. What is then left is for ``math-verify`` to say.
    """
    marked = "\\boxed{" in problem.answer or "####" in problem.answer
    expected = answer_of(problem.answer) if marked else problem.answer
    return _is_plainly(_plain(expected), text) or _verified(expected, answer_of(text))


def _is_plainly(expected: str, text: str) -> bool:
    given = _plain(answer_of(text))
    if given == expected:
        return True
    try:
        return Fraction(given) == Fraction(expected)
    except (ValueError, ZeroDivisionError):
        words = text.split()
        return bool(words) and _plain(words[-1]) == expected


def _verified(expected: str, given: str) -> bool:
    from math_verify import parse, verify

    gold, answer = (parse(f"${text.strip().strip('$')}$") for text in (expected, given))
    return bool(gold and answer and verify(gold, answer))


def _plain(answer: str) -> str:
    return answer.replace(",", "").replace("$", "").strip().rstrip(".").casefold()
