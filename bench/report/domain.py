"""What the report runs on: a pair, problems to calibrate on and to test on, and two checkers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bench.evaluate import TestSet
from bench.tasks.problem import STYLES
from bench.tasks.registry import TASKS
from engine.config import Pair
from engine.errors import SteerError
from engine.tokenizer import Tokenizer

CALIBRATION_PROBLEMS = 400
_RIGID = Path(__file__).resolve().parents[2] / "tests" / "data" / "rigid"
_ALL = tuple(f"{task}-{style}" for task in TASKS for style in STYLES)


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


def _pairs() -> list[Pair]:
    """Those whose weights are here; the embedded one first."""
    return [Pair.named("tiny"), Pair("custom", _RIGID / "small", _RIGID / "large")]


@cache
def _knows(folder: Path, text: str) -> bool:
    try:
        Tokenizer(folder).encode(text)
    except SteerError:
        return False
    return True


def _pair_for(name: str) -> Pair | None:
    """The first pair that has a token for all that a problem says."""
    task, _, style = name.rpartition("-")
    problem = TASKS[task].problems("calibration", 1, style=style)[0]
    texts = problem.prompt + problem.trace
    if style == STYLES[0]:  # the other pairs here were trained on rigid steps only
        return next((p for p in _pairs()[:1] if p.small and _knows(p.small, texts)), None)
    return next((p for p in _pairs() if p.small and _knows(p.small, texts)), None)


def available() -> list[str]:
    """Domains that a pair with its weights here can do."""
    return [name for name in _ALL if _pair_for(name)]


def domain(name: str, problems: int) -> Domain:
    """A domain by name, with so many test problems."""
    if name not in _ALL:
        raise SteerError(f"unknown domain {name!r}; known: {', '.join(_ALL)}")
    pair = _pair_for(name)
    if pair is None:
        raise SteerError(f"no pair here can do {name}; known: {', '.join(available())}")
    task, _, style = name.rpartition("-")
    found = TASKS[task]
    first, second = (
        TestSet(
            found.problems(split, count, style=style), found.is_correct, found.max_tokens[style]
        )
        for split, count in (("calibration", CALIBRATION_PROBLEMS), ("test", problems))
    )
    return Domain(name, pair, first, second, found.first_error)
