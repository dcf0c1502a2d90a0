"""The tasks of the embedded pair by name: those that it was trained on, and others made of them."""

from __future__ import annotations

from bench.tasks import arithmetic, hops, planning, quiet, stretches
from bench.tasks.problem import Problem, Task
from engine.errors import SteerError

TASKS: dict[str, Task] = {t.TASK.name: t.TASK for t in (arithmetic, hops, planning)}
# Other problems, or other steps, in the formats that the pair knows.
DERIVED: dict[str, Task] = {t.TASK.name: t.TASK for t in (stretches, quiet)}
EVERY = TASKS | DERIVED
ALL = "all"  # equally many problems of each that it was trained on, in turn


def problems(
    task: str, split: str, count: int, seed: int = 0, mix: str = "mixed", style: str = "open"
) -> list[Problem]:
    """The first ``count`` problems of a task, or of all that the pair was trained on in turn.

    SteerError for a style that a task is not written in.
    """
    tasks = list(TASKS.values()) if task == ALL else [EVERY[task]]
    for each in tasks:
        if style not in each.max_tokens:
            raise SteerError(
                f"task {each.name} is written in style {', '.join(each.max_tokens)}, got {style!r}"
            )
    share = -(-count // len(tasks))
    drawn = [t.problems(split, share, seed, mix, style) for t in tasks]
    return [p for row in zip(*drawn, strict=True) for p in row][:count]


def is_correct(problem: Problem, text: str) -> bool:
    """Whether a completion answers the problem, by its task's checker."""
    return EVERY[problem.task].is_correct(problem, text)
