"""What the report runs on: a pair, problems to calibrate on and to test on, and two checkers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.evaluate import TestSet
from bench.tasks import arithmetic
from engine.config import Pair
from engine.errors import SteerError

CALIBRATION_PROBLEMS = 400
_RIGID = Path(__file__).resolve().parents[2] / "tests" / "data" / "rigid"


@dataclass(frozen=True)
class Domain:
    """One task in one style of steps.

    ``first_error`` gives the first wrong step of a text that may not be whole, None or a later one
    where all of its steps are right so far.
    """

    name: str
    pair: Pair
    calibration: TestSet
    test: TestSet
    first_error: Callable[[Any, str], int | None]


def _gold_error(problem: arithmetic.Problem, text: str) -> int | None:
    given = text.split(arithmetic.DELIMITER)
    wrong = (i for i, step in enumerate(problem.steps) if given[i : i + 1] != [step])
    return next(wrong, None if len(given) == len(problem.steps) else len(problem.steps))


def _arithmetic(style: str, problems: int) -> Domain:
    pair = Pair.named("tiny")
    if style == "rigid":
        pair = Pair("custom", _RIGID / "small", _RIGID / "large")
    first, second = (
        TestSet(
            arithmetic.problems(split, count, style=style),
            arithmetic.is_correct,
            80 if style == "open" else 120,
        )
        for split, count in (("calibration", CALIBRATION_PROBLEMS), ("test", problems))
    )
    return Domain(f"arithmetic-{style}", pair, first, second, _gold_error)


_DOMAINS: dict[str, Callable[[int], Domain]] = {
    "arithmetic-open": lambda n: _arithmetic("open", n),
    "arithmetic-rigid": lambda n: _arithmetic("rigid", n),
}
DOMAINS = tuple(_DOMAINS)


def domain(name: str, problems: int) -> Domain:
    """A domain by name, with so many test problems."""
    if name not in _DOMAINS:
        raise SteerError(f"unknown domain {name!r}; known: {', '.join(DOMAINS)}")
    return _DOMAINS[name](problems)
