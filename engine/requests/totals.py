"""What an engine has done since it was made, and what it holds now, in numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine import _core
from engine._core import LARGE, ROW_KINDS, SMALL
from engine.config import ROLES
from engine.device.kv_arena import ArenaGeometry
from engine.request import Completion


class Totals:
    """Sums over the requests that have ended.

    rows: int64 [model, kind], computed rows.
    handoffs: steps of the large model that followed none of its own.
    finished: requests by finish reason.
    """

    def __init__(self) -> None:
        self.rows = np.zeros((2, len(ROW_KINDS)), np.int64)
        self.handoffs = 0
        self.finished: dict[str, int] = {}

    def add(self, completion: Completion) -> None:
        """Count a request that has ended."""
        self.rows += completion.usage.rows[:, :, 0]
        writers = [step.model for step in completion.steps]
        pairs = zip([None, *writers], writers, strict=False)
        self.handoffs += sum(before != "large" == after for before, after in pairs)
        reason = completion.finish_reason
        self.finished[reason] = self.finished.get(reason, 0) + 1


def snapshot(
    scheduler: _core.Scheduler, totals: Totals, geometry: ArenaGeometry, block: int
) -> dict[str, Any]:
    """The numbers of an engine now; any thread may ask, and the work is the same at any load.

    Args:
        block: tokens of a block.

    Returns:
        ``running`` and ``waiting`` requests; ``ticks`` and computed ``rows`` (by kind, of requests
        that have ended) by role; ``preemptions`` and ``handoffs`` so far; ``finished`` requests by
        reason; ``slabs`` by owner, ``free`` and ``lent`` to the model that does not own them;
        ``tokens`` of KV by role, ``live`` or only ``cached``; ``capacity``: tokens that each model
        could keep alone; ``kv_usage``: the share of the arena that live KV takes, 0 to 1.
    """
    counters, pool = scheduler.counters(), scheduler.pool
    slabs, slots = geometry.slabs, geometry.slots
    ticks: Any = counters["ticks"]
    live = {role: pool.live(i) for i, role in enumerate(ROLES)}
    return {
        "running": scheduler.running,
        "waiting": scheduler.waiting,
        "ticks": dict(zip(ROLES, ticks, strict=True)),
        "rows": {
            role: dict(zip(ROW_KINDS, totals.rows[i].tolist(), strict=True))
            for i, role in enumerate(ROLES)
        },
        "preemptions": counters["preemptions"],
        "handoffs": totals.handoffs,
        "finished": dict(totals.finished),
        "slabs": {
            "small": pool.owned(SMALL),
            "large": pool.owned(LARGE),
            "free": pool.free_slabs,
            "lent": pool.lent,
        },
        "tokens": {
            role: {"live": live[role] * block, "cached": pool.cached(i) * block}
            for i, role in enumerate(ROLES)
        },
        "capacity": {role: slabs * slots[i] * block for i, role in enumerate(ROLES)},
        "kv_usage": sum(live[role] / slots[i] for i, role in enumerate(ROLES)) / slabs,
    }
