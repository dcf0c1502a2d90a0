"""One model's ticks: plan, run, commit."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from engine import _core
from engine._core import LARGE, SMALL
from engine.execution.in_flight import InFlightTick, TickResult
from engine.execution.logprobs import Drawn
from engine.execution.runner import ModelRunner
from engine.out_of_memory import is_out_of_memory
from engine.requests.request_state import RequestState
from engine.routing.signals import Signals


@dataclass
class _Flight:
    """A plan that is not committed.

    pending: its tick; None until the launch has succeeded.
    failed: whether a launch has failed once.
    """

    plan: _core.Plan
    pending: InFlightTick | None = None
    failed: bool = False


class Lane:
    """Runs one model's ticks. Only ``wait`` and ``land`` wait for the device.

    With ``ahead`` the next tick is planned and launched while the last one still runs, so that the
    device has work while the host decides.
    """

    def __init__(
        self, scheduler: _core.Scheduler, runner: ModelRunner, ahead: bool = False
    ) -> None:
        self.runner = runner
        self._scheduler = scheduler
        self._depth = 2 if ahead else 1
        self._plans = [scheduler.buffers(runner.model, index) for index in range(2)]
        self._flights: deque[_Flight] = deque()  # at most ``depth``, oldest first
        self._latest: InFlightTick | None = None  # the tick that was launched last
        self._result: TickResult | None = None
        self._running = False
        self.out_of_memory = False  # whether the last launch ran out of memory

    @property
    def ahead(self) -> bool:
        """Whether ticks are planned while the last one runs."""
        return self._depth > 1

    @property
    def in_flight(self) -> bool:
        """Whether a launched tick is not committed yet."""
        return bool(self._flights) and self._flights[0].pending is not None

    def start(self, requests: Mapping[int, RequestState]) -> bool:
        """Plan and launch the next ticks. False if there was no work.

        A plan whose launch raised is launched again, in its old order: it writes the same rows. If
        it fails twice, its requests end with an error, and the exception passes through again. Out
        of memory does not raise: it sets ``out_of_memory``, because other requests are unaffected.
        """
        if self._running:  # called from within its own forward pass
            return False
        moved = self.out_of_memory = False
        while (flight := self._next()) is not None:
            moved = True
            if not self._launch(flight, requests):
                break
        return moved

    def _next(self) -> _Flight | None:
        """The plan to launch next, if any."""
        flights = self._tidied()
        if flights and flights[-1].pending is None:
            return flights[0] if len(flights) == 1 else None
        if len(flights) == self._depth:
            return None
        plan = self._plans[bool(flights) and flights[0].plan is self._plans[0]]
        if self._scheduler.plan(self.runner.model, bool(flights)) == 0:
            return None
        flights.append(_Flight(plan))
        return flights[-1]

    def _tidied(self) -> deque[_Flight]:
        """The flights, brought in line with the core's after an interrupt between the two."""
        flights = self._flights
        while flights and not flights[0].plan.in_flight:
            flights.popleft()
        known = [flight.plan for flight in flights]
        flights.extend(_Flight(p) for p in self._plans if p.in_flight and p not in known)
        return flights

    def _launch(self, flight: _Flight, requests: Mapping[int, RequestState]) -> bool:
        self._running = True
        try:
            flight.pending = self.runner.launch(flight.plan, requests, self._latest)
        except Exception as error:
            self._give_up(flight)
            if not is_out_of_memory(error):
                raise
            self.out_of_memory = True
        finally:
            self._running = False
        if flight.pending is None:
            self.runner.release()  # only now: the exception kept the tensors of the pass alive
            return False
        self._latest = flight.pending
        return True

    def _give_up(self, flight: _Flight) -> None:
        """Note that a launch failed; at the second failure its requests end."""
        if flight.failed:
            self._flights.remove(flight)
            self._scheduler.fail(self.runner.model)
        flight.failed = True

    def ready(self) -> bool:
        """Whether ``retire`` would commit a tick."""
        flights = self._tidied()
        return bool(flights) and (pending := flights[0].pending) is not None and pending.done()

    def retire(self, requests: Mapping[int, RequestState]) -> bool:
        """Commit the oldest tick if it is done. False if it is not."""
        if not self.ready():
            return False
        self._commit(requests)
        return True

    def wait(self) -> None:
        """Wait until the oldest tick is done, if one runs."""
        pending = self._flights[0].pending if self._flights else None
        if pending is not None and pending.ticket is not None:
            with suppress(Exception):  # it is raised again with the result
                pending.ticket.wait()

    def _audit(self, request: int, scores: list[tuple[int, float]], draw: RequestState) -> None:
        """Add scores, given as (position, log p_large); cut at the first step that fails the audit,
        or settle what has passed.

        Called before the commit, so that tokens drawn after a failed step are dropped with it.
        """
        if draw.audit is None or not scores:
            return
        sequence = self._scheduler.view(request)
        draw.audit.follow(sequence)
        for position, logprob in scores:
            draw.audit.add(position, logprob)
        draw.audit.compare(self._scheduler, sequence)
        cut = draw.audit.doubted(self._scheduler, sequence, draw.steps, draw.drawn.small)
        if cut is not None:
            self._scheduler.truncate(request, cut)
            return
        read = 1 + max(position for position, _ in scores)
        # A stop string may begin in these tokens, and an incomplete step is not judged yet.
        whole = read if read >= sequence.length else sequence.settled
        if not draw.params.stop and whole > sequence.settled and not sequence.closing:
            self._scheduler.settle(request, whole)

    def land(self, requests: Mapping[int, RequestState]) -> None:
        """Commit all ticks in flight, after launching those that an exception left unlaunched."""
        while self._tidied() and not self._running:
            flight = self._flights[0]
            if flight.pending is None and not self._launch(flight, requests):
                continue
            self._commit(requests)

    def _commit(self, requests: Mapping[int, RequestState]) -> None:
        """Wait for the oldest tick and commit it. If it failed on the device, its requests end."""
        flight = self._flights[0]
        assert flight.pending is not None
        result = None
        try:
            result = flight.pending.result()
        except Exception as error:
            while self._flights:  # later ticks have read KV that this one should have written
                self._flights.popleft()
                self._scheduler.fail(self.runner.model)
            if not is_out_of_memory(error):
                raise
        if result is None:
            return self.runner.release()
        self._keep(flight.plan, result, requests)
        self._result = result
        self._scheduler.commit(self.runner.model, result.tokens)
        self._flights.popleft()
        return None

    def _keep(
        self, plan: _core.Plan, result: TickResult, requests: Mapping[int, RequestState]
    ) -> None:
        """Store the draws, signals and scores of requests, before a commit can end them."""
        stands = self._scheduler.standing(self.runner.model) if self.ahead else None
        sampled = set(result.sampled)
        for row in sorted(sampled | result.audited.keys() | result.prompts.keys()):
            if stands is not None and not stands[row]:
                continue
            request = int(plan.ids[row])
            if plan.guesses[row]:
                continue  # not of the text, nor of a boundary
            draw, drawn = requests[request], _verified(plan, row, result.drawn.get(request, []))
            for each in drawn:
                draw.drawn.add(each)
            if draw.prompt_log is not None:
                for position, entry in result.prompts.get(row, []):
                    draw.prompt_log.add(position, entry)
            if row in sampled:
                self._keep_signals(plan, row, result, draw)
            if self.runner.model == LARGE and draw.audit is not None:
                for each in drawn:
                    draw.audit.foresee(each)
                self._audit(request, result.audited.get(row, []), draw)

    def _keep_signals(
        self, plan: _core.Plan, row: int, result: TickResult, draw: RequestState
    ) -> None:
        """Those that decisions will need; of a row that verifies guesses, of each of its draws."""
        if self.runner.model == SMALL:
            if draw.collects:
                draw.signals[int(plan.contexts[row])] = result.signals(row)
        elif draw.policy.needs_large_signals:
            for place, position in enumerate(_positions(plan, row)):
                draw.large_signals[position] = result.signals(row, place)

    def signals(self, row: int) -> Signals:
        """Signals of a plan row of the tick that was committed last."""
        if self._result is None:
            raise RuntimeError("no tick was committed on this lane")
        return self._result.signals(row)


def _positions(plan: _core.Plan, row: int) -> range:
    """The positions of the tokens that a plan row draws: several where it verifies guesses."""
    last = int(plan.contexts[row])
    return range(last - int(plan.samples[row]) + 1, last + 1)


def _verified(plan: _core.Plan, row: int, draws: list[Drawn]) -> list[Drawn]:
    """The draws of a sequence that have read text: those up to the first that is not as guessed."""
    if len(draws) < 2:
        return draws
    guesses, end = int(plan.samples[row]) - 1, int(plan.starts[row + 1])
    first = int(plan.contexts[row]) - guesses
    for i, draw in enumerate(draws):
        place = draw.position - first
        if place < guesses and draw.token != plan.tokens[end - guesses + place]:
            return draws[: i + 1]
    return draws
