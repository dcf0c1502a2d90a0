"""What the report runs on: a pair, problems to calibrate on and to test on, and two checkers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.evaluate import TestSet, task_tests
from bench.tasks.registry import TASKS
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


def _embedded(task: str, style: str, problems: int) -> Domain:
    pair = Pair.named("tiny")
    if style == "rigid":
        pair = Pair("custom", _RIGID / "small", _RIGID / "large")
    first, second = (
        task_tests(split, count, style=style, task=task)
        for split, count in (("calibration", CALIBRATION_PROBLEMS), ("test", problems))
    )
    return Domain(f"{task}-{style}", pair, first, second, TASKS[task].first_error)


_DOMAINS: dict[str, Callable[[int], Domain]] = {
    "arithmetic-open": lambda n: _embedded("arithmetic", "open", n),
    "hops-open": lambda n: _embedded("hops", "open", n),
    "planning-open": lambda n: _embedded("planning", "open", n),
    "arithmetic-rigid": lambda n: _embedded("arithmetic", "rigid", n),
}
DOMAINS = tuple(_DOMAINS)


def domain(name: str, problems: int) -> Domain:
    """A domain by name, with so many test problems."""
    if name not in _DOMAINS:
        raise SteerError(f"unknown domain {name!r}; known: {', '.join(DOMAINS)}")
    return _DOMAINS[name](problems)
