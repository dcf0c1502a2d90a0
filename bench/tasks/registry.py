"""The tasks of the embedded pair by name."""

from __future__ import annotations

from bench.tasks import arithmetic, hops, planning
from bench.tasks.problem import Problem, Task

TASKS: dict[str, Task] = {t.TASK.name: t.TASK for t in (arithmetic, hops, planning)}
ALL = "all"  # equally many problems of each, in turn


def problems(
    task: str, split: str, count: int, seed: int = 0, mix: str = "mixed", style: str = "open"
) -> list[Problem]:
    """The first ``count`` problems of a task, or of all of them in turn."""
    tasks = list(TASKS.values()) if task == ALL else [TASKS[task]]
    each = -(-count // len(tasks))
    drawn = [t.problems(split, each, seed, mix, style) for t in tasks]
    return [p for row in zip(*drawn, strict=True) for p in row][:count]


def is_correct(problem: Problem, text: str) -> bool:
    """Whether a completion answers the problem, by its task's checker."""
    return TASKS[problem.task].is_correct(problem, text)
