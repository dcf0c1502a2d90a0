"""The tasks of the embedded pair by name."""

from __future__ import annotations

from bench.tasks import arithmetic, hops, planning
from bench.tasks.problem import Task

TASKS: dict[str, Task] = {t.TASK.name: t.TASK for t in (arithmetic, hops, planning)}
