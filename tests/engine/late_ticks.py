"""Ticks that are launched before the host knows what the last one drew."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from engine._core import SMALL, EventKind
from engine.device.device_queue import HostQueue


class LateQueue(HostQueue):
    """Runs nothing before the host waits for it."""

    def __init__(self):
        self.waiting = []

    def submit(self, work):
        self.waiting.append(work)
        last = len(self.waiting)

        def wait():
            for i in range(last):
                if self.waiting[i] is not None:
                    self.waiting[i], late = None, self.waiting[i]
                    late()

        done = lambda: self.waiting[last - 1] is None  # noqa: E731
        return SimpleNamespace(done=done, wait=wait)


def copied(plan):
    """A plan whose buffers are nobody else's."""
    names = (
        "sequences",
        "rows",
        "copied",
        "draws",
        "copies",
        "tokens",
        "positions",
        "slots",
        "starts",
        "contexts",
        "samples",
        "guesses",
        "attempts",
        "blocks",
        "ids",
    )
    kept = {name: np.copy(getattr(plan, name)) for name in names}
    scalars = {name: int(kept[name]) for name in ("sequences", "rows", "copied", "draws")}
    return SimpleNamespace(**{**kept, **scalars})


def route_all(scheduler):
    """Let the small model write every step; the tokens of what is finished, by id."""
    finished = {}
    for kind, request, _ in scheduler.take_events():
        if kind == EventKind.decide:
            scheduler.route(request, SMALL)
        else:
            finished[request] = scheduler.sequence(request).tokens.tolist()
    return finished


def launched(runner, plan, requests, previous, stale):
    """Start a plan; one that names unknown tokens is refused without the tick that draws them."""
    plan = copied(plan)
    unknown = bool((plan.tokens[: plan.rows] < 0).any())
    for other in (None, stale) if unknown else ():
        with pytest.raises(ValueError, match="previous must be this lane's last tick"):
            runner.launch(plan, requests, other)
    pending = runner.launch(plan, requests, previous)
    for name in ("tokens", "contexts", "blocks", "slots"):  # the plan's buffers are free again
        getattr(plan, name)[:] = 0
    return pending, unknown
