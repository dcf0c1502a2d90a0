"""The scheduler driven by hand, a step at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from engine._core import Plan, Scheduler, Sequence

from .kinds import LARGE, SMALL

Make = Callable[..., Scheduler]

# See conftest.TOKEN_BYTES.
A, B, C, D, E, F, NEWLINE, BOTH, SPECIAL, THREE = 0, 1, 2, 3, 4, 5, 6, 7, 9, 10


def keys(first: int, last: int) -> int:
    """Keys that the rows at positions [first, last) attend to, each row itself included."""
    return sum(position + 1 for position in range(first, last))


def kinds(sequence: Sequence, model: int) -> dict[int, tuple[int, int]]:
    """Rows and keys by kind, zeros left out."""
    return {kind: (int(r), int(k)) for kind, (r, k) in enumerate(sequence.rows[model]) if r}


def start(scheduler: Scheduler, prompt: int, model: int, **request: object) -> int:
    """Add a request of `prompt` tokens without a reader and route it."""
    settings = {"max_tokens": 16} | request
    id = scheduler.add([A] * prompt, **settings)  # type: ignore[arg-type]
    scheduler.take_events()
    scheduler.route(id, model)
    return id


def read(scheduler: Scheduler, prompt: int, **request: object) -> int:
    """Add a request whose boundaries the small model reads."""
    settings = {"max_tokens": 16, "reader": SMALL} | request
    return scheduler.add([A] * prompt, **settings)  # type: ignore[arg-type]


def commit(scheduler: Scheduler, lane: int, *tokens: int) -> None:
    scheduler.commit(lane, np.array(tokens, np.int32))


def tick(scheduler: Scheduler, lane: int, *tokens: int) -> Plan:
    """One tick that must hold as many sequences as there are tokens."""
    assert scheduler.plan(lane) == len(tokens)
    commit(scheduler, lane, *tokens)
    return scheduler.buffers(lane)


def write(scheduler: Scheduler, lane: int, *tokens: int) -> None:
    """Ticks of a lane with one sequence."""
    for token in tokens:
        tick(scheduler, lane, token)


def spans(plan: Plan) -> dict[int, list[int]]:
    """Positions by sequence."""
    bounds = plan.starts[: plan.sequences + 1].tolist()
    return {
        int(plan.ids[i]): plan.positions[bounds[i] : bounds[i + 1]].tolist()
        for i in range(plan.sequences)
    }


def planned_draft(scheduler: Scheduler, id: int) -> list[int]:
    """What the large lane is about to verify; it is planned, and not committed."""
    assert scheduler.plan(LARGE) == 1
    seen = scheduler.sequence(id)
    assert not seen.drafting
    assert scheduler.buffers(LARGE).samples[0] == len(seen.draft) + 1
    return seen.draft
