"""One model's clock: plan, run, commit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from engine import _core
from engine.routing.signals import Signals
from engine.runner import Draw, ModelRunner, TickResult


class Lane:
    """Drives one model through the scheduler. The other lane never waits for this one's tick."""

    def __init__(self, scheduler: _core.Scheduler, runner: ModelRunner) -> None:
        self.runner = runner
        self._scheduler = scheduler
        self._plan = scheduler.buffers(runner.model)
        self._result: TickResult | None = None

    def tick(self, requests: Mapping[int, Draw]) -> bool:
        """One plan, one forward pass, one commit. False if there was nothing to do now."""
        if self._scheduler.plan(self.runner.model) == 0:
            return False
        self._result = self.runner.execute(self._plan, requests)
        self._scheduler.commit(self.runner.model, self._result.tokens)
        return True

    def signals(self, row: int) -> Signals:
        """Boundary statistics of a row of the last tick."""
        if self._result is None:
            raise RuntimeError("no tick has run on this lane")
        return self._result.signals(row)

    def abandon(self) -> None:
        """Retire a plan whose forward pass did not come back: its rows gave nothing."""
        if self._plan.in_flight:
            nothing = np.full(self._plan.sequences, -1, np.int32)
            self._scheduler.commit(self.runner.model, nothing)
