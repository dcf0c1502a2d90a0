"""One model's clock: plan, run, commit."""

from __future__ import annotations

from collections.abc import Mapping

from engine import _core
from engine.pending import TickResult
from engine.routing.signals import Signals
from engine.runner import ModelRunner
from engine.sampler import Draw

_SMALL = 0


class Lane:
    """Drives one model through the scheduler. On a CPU the engine ticks its lanes in turn."""

    def __init__(self, scheduler: _core.Scheduler, runner: ModelRunner) -> None:
        self.runner = runner
        self._scheduler = scheduler
        self._plan = scheduler.buffers(runner.model)
        self._result: TickResult | None = None
        self._running = False
        self._failed = False

    def tick(self, requests: Mapping[int, Draw]) -> bool:
        """One plan, one forward pass, one commit. False if there was nothing to do now.

        A plan whose forward pass an exception cut short is run again: it writes the same rows. If
        it fails twice its requests end with an error, and the exception passes through again.
        """
        if self._running:  # called from within its own forward pass
            return False
        if not self._plan.in_flight:
            self._failed = False
            if self._scheduler.plan(self.runner.model) == 0:
                return False
        self._running = True
        try:
            result = self.runner.execute(self._plan, requests)
        except Exception:
            if self._failed:
                self._scheduler.fail(self.runner.model)
            self._failed = True
            raise
        finally:
            self._running = False
        self._result = result
        self._keep(result, requests)
        self._scheduler.commit(self.runner.model, result.tokens)
        return True

    def _keep(self, result: TickResult, requests: Mapping[int, Draw]) -> None:
        """What requests want to know of their draws, before a commit can end them."""
        for request, drawn in result.drawn.items():
            requests[request].drawn.add(drawn)
        if self.runner.model != _SMALL:
            return
        for row in result.sampled:
            draw = requests[int(self._plan.ids[row])]
            if draw.collects:
                draw.signals[int(self._plan.contexts[row])] = result.signals(row)

    def land(self, requests: Mapping[int, Draw]) -> None:
        """Bring home a plan that an exception left in flight."""
        if self._plan.in_flight:
            self.tick(requests)

    def signals(self, row: int) -> Signals:
        """Boundary statistics of a row of the last tick."""
        if self._result is None:
            raise RuntimeError("no tick has run on this lane")
        return self._result.signals(row)
