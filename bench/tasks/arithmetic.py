"""Left-to-right arithmetic modulo 100, with a worked trace of steps.

A problem is a start value and K operations that are read strictly from left to right, for
example ``47+36*7-15?``. Each line of the trace says what the last line comes to and what to do
next, so the uncertain digit comes right after the delimiter::

    47+36 / 83*7 / 81-15 / 66<eos>

That is style ``open``. In style ``rigid`` each line restates its operation first, so a step's first
token is a copy and says nothing about the doubt that follows::

    47+36=83 / 83*7=81 / 81-15=66<eos>

Only the operation shows how hard a step is: ``+`` and ``-`` are easy, ``*`` by 3, 7
or 9 is medium, ``*`` by 11..99 is hard. Multipliers end in 1, 3, 7 or 9: they are coprime to
100, so a wrong digit can never be multiplied away again.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence

from bench.tasks.problem import (
    DELIMITER,
    EOS,
    EQUALS,
    PAD,
    SPLITS,
    STYLES,
    Mix,
    Problem,
    Task,
    first_difference,
    last_line,
    split_of,
)

__all__ = ["DELIMITER", "EOS", "EQUALS", "PAD", "SPLITS", "STYLES", "Problem", "split_of"]

MODULUS = 100
KINDS = ("easy", "medium", "hard")
MIXES: dict[str, Mix] = {
    "light": (0.7, 0.15, 0.15),
    "mixed": (0.55, 0.2, 0.25),
    "hard": (0.3, 0.2, 0.5),
}
_MEDIUM = (3, 7, 9)
_HARD = tuple(b for b in range(11, 100) if b % 10 in (1, 3, 7, 9))


def _operation(kind: str, rng: random.Random) -> tuple[str, int]:
    if kind == "easy":
        return rng.choice("+-"), rng.randint(10, 99)
    return "*", rng.choice(_MEDIUM if kind == "medium" else _HARD)


def _apply(value: int, sign: str, operand: int) -> int:
    if sign == "+":
        return (value + operand) % MODULUS
    return (value - operand if sign == "-" else value * operand) % MODULUS


def make_problem(rng: random.Random, operations: int, mix: Mix, style: str = "open") -> Problem:
    """Draw one problem with ``operations`` operations of the kinds that ``mix`` weighs."""
    first = rng.randrange(MODULUS)
    return _problem(rng, first, rng.choices(KINDS, weights=mix, k=operations), style)


def problem_of_kinds(rng: random.Random, kinds: Sequence[str], style: str = "open") -> Problem:
    """Draw one problem with an operation of each of these kinds, in this order."""
    return _problem(rng, rng.randrange(MODULUS), kinds, style)


def _problem(rng: random.Random, value: int, kinds: Sequence[str], style: str) -> Problem:
    prompt, steps = f"{value:02d}", []
    for kind in kinds:
        sign, operand = _operation(kind, rng)
        prompt += f"{sign}{operand}"
        result = _apply(value, sign, operand)
        done = f"{EQUALS}{result:02d}" if style == "rigid" else ""
        steps.append(f"{value:02d}{sign}{operand}{done}")
        value = result
    if style == "open":
        steps.append(f"{value:02d}")
    copied = ("copy",) if style == "open" else ()
    return Problem(f"{prompt}?{DELIMITER}", tuple(steps), (*copied, *kinds), f"{value:02d}")


def solve(prompt: str, style: str = "open") -> list[str]:
    """The trace of a prompt, step by step, read off its text alone."""
    start, *operations = re.findall(r"[-+*]?\d+", prompt)
    value, steps = int(start), []
    for operation in operations:
        result = _apply(value, operation[0], int(operation[1:]))
        done = f"{EQUALS}{result:02d}" if style == "rigid" else ""
        steps.append(f"{value:02d}{operation}{done}")
        value = result
    return steps if style == "rigid" else [*steps, f"{value:02d}"]


def first_error(problem: Problem, text: str) -> int | None:
    """The first step that is not the prompt's; None where the whole trace is right."""
    return first_difference(solve(problem.prompt, "rigid" if EQUALS in text else "open"), text)


def answer_of(text: str) -> str:
    """The answer that a completion gives: its last line, after the equals sign if it has one."""
    return last_line(text, EQUALS)


def is_correct(problem: Problem, text: str) -> bool:
    """Whether a completion ends in the right answer."""
    return answer_of(text) == problem.answer


def step_keys(problem: Problem) -> list[str]:
    """A value and the operation on it, for each operation."""
    return [s for s in solve(problem.prompt) if not s.isdigit()]


TASK = Task(
    "arithmetic",
    make_problem,
    MIXES,
    is_correct,
    first_error,
    step_keys,
    {"open": 80, "rigid": 120},
)


def stream(
    split: str, seed: int, mix: Mix, operations: tuple[int, int] = (4, 8), style: str = "open"
) -> Iterator[Problem]:
    """:meth:`Task.stream` of this task."""
    return TASK.stream(split, seed, mix, operations, style)


def problems(
    split: str, count: int, seed: int = 0, mix: str = "mixed", style: str = "open"
) -> list[Problem]:
    """:meth:`Task.problems` of this task."""
    return TASK.problems(split, count, seed, mix, style)
