"""Arithmetic whose steps open quietly and go wrong within: a step ends after an operator.

Prompts, traces and checkers are those of ``arithmetic`` in style ``open``; the embedded pair knows
them. Only the cuts between steps differ. There a line of the trace is a step, and its first token
is the digit that may be wrong. Here a step ends after ``+``, ``-`` or ``*`` (``|`` marks a cut)::

    47+|36 / 83*|7 / 81-|15 / 66<eos>

So a step opens with an operand, a copy from the prompt that is never in doubt, and the result comes
within. A step has at most one result, and the line with a wrong one is the step that is wrong.
"""

from __future__ import annotations

import random

from bench.tasks import arithmetic
from bench.tasks.problem import Mix, Problem, Task


def make_problem(rng: random.Random, operations: int, mix: Mix, style: str = "open") -> Problem:
    """Draw one problem of ``arithmetic``; its ``steps`` are the lines of the trace."""
    return arithmetic.make_problem(rng, operations, mix, style)


TASK = Task(
    "quiet",
    make_problem,
    arithmetic.MIXES,
    arithmetic.is_correct,
    arithmetic.first_error,
    arithmetic.step_keys,
    {"open": arithmetic.TASK.max_tokens["open"]},
    delimiters=("+", "-", "*"),
)
