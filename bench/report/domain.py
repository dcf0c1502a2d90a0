"""A domain of the report: a pair, problems to calibrate on and to test on, and two checkers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bench.evaluate import TestSet, task_tests
from bench.tasks.problem import STYLES
from bench.tasks.registry import TASKS
from engine.config.pairs import Pair
from engine.errors import SteerError
from engine.text.tokenizer import Tokenizer

CALIBRATION_PROBLEMS = 400
_RIGID = Path(__file__).resolve().parents[2] / "tests" / "data" / "rigid"
_ALL = tuple(f"{task}-{style}" for task in TASKS for style in STYLES)


@dataclass(frozen=True)
class Domain:
    """One task in one style of steps.

    ``first_error`` gives the first wrong step of a text that may be cut off; None or a later step
    if all of its steps are right so far.
    """

    name: str
    pair: Pair
    calibration: TestSet
    test: TestSet
    first_error: Callable[[Any, str], int | None]


def _pair_of(style: str) -> Pair:
    """The pair, of those whose weights are here, that was trained on a style of steps."""
    if style == "rigid":
        return Pair("custom", _RIGID / "small", _RIGID / "large")
    return Pair.named("tiny")


@cache
def _knows(folder: Path, text: str) -> bool:
    try:
        Tokenizer(folder).encode(text)
    except SteerError:
        return False
    return True


def _pair_for(name: str) -> Pair | None:
    """The pair of a domain, if it has tokens for all symbols of a problem."""
    task, _, style = name.rpartition("-")
    problem = TASKS[task].problems("calibration", 1, style=style)[0]
    pair = _pair_of(style)
    knows = pair.small is not None and _knows(pair.small, problem.prompt + problem.trace)
    return pair if knows else None


def available() -> list[str]:
    """Domains that a pair whose weights are here can do."""
    return [name for name in _ALL if _pair_for(name)]


def domain(name: str, problems: int) -> Domain:
    """A domain by name, with ``problems`` test problems."""
    if name not in _ALL:
        raise SteerError(f"unknown domain {name!r}; known: {', '.join(_ALL)}")
    pair = _pair_for(name)
    if pair is None:
        raise SteerError(f"no pair here can do {name}; known: {', '.join(available())}")
    task, _, style = name.rpartition("-")
    first, second = (
        task_tests(split, count, style=style, task=task)
        for split, count in (("calibration", CALIBRATION_PROBLEMS), ("test", problems))
    )
    return Domain(name, pair, first, second, TASKS[task].first_error)
