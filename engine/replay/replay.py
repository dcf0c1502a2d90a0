"""Replays the decisions of a trace under another policy, on the text that was written then."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from engine.accounting.ledger import Usage
from engine.errors import SteerError
from engine.replay.books import Books
from engine.replay.trace import Trace, TracedRequest, TracedStep
from engine.routing.policies import Boundary, Decision, Policy, window_of

LIMITS = """\
A replay keeps the text of the trace. It is exact up to the first decision of a request that
differs: from there on the other model would have written other words, with other signals and
another length. So it says nothing about accuracy, and its costs are those of this text."""


@dataclass
class Replayed:
    """What a policy decided.

    changed: decisions that differ from the trace's; same: requests in which none does.
    """

    policy: str
    usage: Usage = field(default_factory=Usage)
    steps: int = 0
    large_steps: int = 0
    changed: int = 0
    requests: int = 0
    same: int = 0

    @property
    def large_step_share(self) -> float:
        """Share of steps by the large model."""
        return self.large_steps / max(1, self.steps)


def replay(trace: Trace, policy: Policy, name: str | None = None) -> Replayed:
    """Ask a policy at every boundary of a trace. SteerError where it needs what is not there."""
    window = window_of(policy)
    looks = policy.reads or hasattr(policy, "window")
    if looks and str(window) != trace.window:
        raise SteerError(
            f"policy {name or policy.name} looks at {window}, the trace holds {trace.window} "
            f"(policy {trace.policy}): record one with a policy that looks at {window}"
        )
    if looks and window.kind == "answer":
        raise SteerError(
            "a decision on a whole answer cannot be replayed: what was taken back is not in a trace"
        )
    found = Replayed(name or policy.name)
    for request in trace.requests:
        _Request(policy, request, found).run()
    return found


class _Request:
    """One request on its way through a policy."""

    def __init__(self, policy: Policy, traced: TracedRequest, found: Replayed) -> None:
        self.policy, self.traced, self.found = policy, traced, found
        self.window = window_of(policy)
        self.books = Books(traced.prompt_tokens)
        self.standing: Decision | None = None
        self.previous: str | None = None
        self.kept: list[float] = []
        self.large_tokens = 0

    def run(self) -> None:
        """All steps, in order."""
        before = self.found.changed
        for index, step in enumerate(self.traced.trail):
            model = self._model(index, step)
            self.books.write(model, step.position, step.tokens)
            self.previous = model
            self.large_tokens += step.tokens * (model == "large")
            self.found.steps += 1
            self.found.large_steps += model == "large"
            self.found.changed += model != step.model
        self.found.usage += self.books.usage
        self.found.requests += 1
        self.found.same += self.found.changed == before

    def _model(self, index: int, step: TracedStep) -> str:
        if self.standing:
            return self.standing.model
        if self.policy.reads and step.signals is None:
            raise SteerError(
                f"request {self.traced.request}, step {index}: the trace has no signals there; "
                "record one with a policy that reads every boundary"
            )
        if self.policy.reads and index:
            self.books.wait(step.position)
        tried = min(step.tried or self.window.tokens, self.window.tokens)
        decision = self.policy.decide(self._boundary(index, step, tried))
        if decision.rest:
            self.standing = decision
        self.kept.append(decision.risk)
        if self.policy.reads and decision.model == "large":
            if tried:
                self.books.reject(step.position, tried)
            else:
                self.books.read(step.position)
        return decision.model

    def _boundary(self, index: int, step: TracedStep, tried: int) -> Boundary:
        last = self.previous == "small"
        return Boundary(
            request=self.traced.request,
            step=index,
            position=step.position,
            prompt_tokens=self.traced.prompt_tokens,
            previous=self.previous,
            catch_up=step.position - self.books.computed[1],
            signals=step.signals if last or self.window.kind != "step" else None,
            tried=tried,
            large_tokens=self.large_tokens,
            risk=1 - math.prod(1 - risk for risk in self.kept),
        )
