"""Arithmetic in which difficulty persists: stretches of easy and of hard operations.

Prompts, traces and checkers are those of ``arithmetic``; the embedded pair knows them. There the
kind of each operation is drawn by itself, so a hard step says nothing about the next one. Here the
kinds are a Markov chain: with chance 0.8 an operation is of the same kind as the one before, else
its kind is drawn by the mix. So shares of kinds are those of the mix, and the correlation of a kind
at one step and at the next is 0.8.
"""

from __future__ import annotations

import random

from bench.tasks import arithmetic
from bench.tasks.problem import Mix, Problem, Task

STAY = 0.8  # chance that an operation is of the same kind as the one before, before any draw


def make_problem(rng: random.Random, operations: int, mix: Mix, style: str = "open") -> Problem:
    """Draw one problem with ``operations`` operations whose kinds come in stretches."""
    kinds: list[str] = []
    for _ in range(operations):
        stays = bool(kinds) and rng.random() < STAY
        kinds.append(kinds[-1] if stays else rng.choices(arithmetic.KINDS, weights=mix)[0])
    return arithmetic.problem_of_kinds(rng, kinds, style)


TASK = Task(
    "stretches",
    make_problem,
    arithmetic.MIXES,
    arithmetic.is_correct,
    arithmetic.first_error,
    arithmetic.step_keys,
    arithmetic.TASK.max_tokens,
)
