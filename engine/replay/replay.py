"""Replays the decisions of a trace under another policy, on the text of the trace."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from engine._core import LARGE
from engine.accounting.ledger import Usage
from engine.errors import SteerError
from engine.replay.books import Books
from engine.replay.trace import Trace, TracedRequest, TracedStep
from engine.routing.policy import Boundary, Decision, Policy, PolicyBase, complete

LIMITS = """\
A replay keeps the text of the trace. It is exact up to the first decision of a request that
differs: from there on the other model would have written other words, with other signals and
another length. So it says nothing about accuracy, and its costs are those of this text."""


@dataclass
class Replayed:
    """Counts of a policy's decisions on a trace.

    usage: rows that its decisions would have cost.
    steps, large_steps: all steps, and those that it gives to the large model.
    changed: decisions that differ from the trace's.
    requests, same: all requests, and those without a changed decision.
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
    """Ask a policy at every boundary of a trace. SteerError if the trace lacks signals it needs."""
    policy = complete(policy)
    if policy.speculation and policy.speculation.tokens:
        raise SteerError(
            f"policy {name or policy.name} guesses tokens, and a trace cannot tell which guesses "
            "would have stood: replay it without speculate or verify"
        )
    if policy.needs_large_signals:
        raise SteerError(
            f"policy {name or policy.name} needs the large model's own signals: no trace holds them"
        )
    window, looks = policy.window, policy.uses_window
    if looks and policy.mask:
        raise SteerError(
            f"policy {name or policy.name} counts some tokens of a step only: it cannot be replayed"
        )
    if looks and str(window) != trace.window:
        raise SteerError(
            f"policy {name or policy.name} looks at {window}, the trace holds {trace.window} "
            f"(policy {trace.policy}): record one with a policy that looks at {window}"
        )
    if looks and window.kind == "answer":
        raise SteerError(
            "a decision on a whole answer cannot be replayed: what was taken back is not in a trace"
        )
    replayed = Replayed(name or policy.name)
    for request in trace.requests:
        _Request(policy, request, replayed).run()
    return replayed


class _Request:
    """Replays one request; its counts are added to ``total``."""

    def __init__(self, policy: PolicyBase, traced: TracedRequest, total: Replayed) -> None:
        self.policy, self.traced, self.total = policy, traced, total
        self.window = policy.window
        self.books = Books(traced.prompt_tokens)
        self.standing: Decision | None = None
        self.previous: str | None = None
        self.kept: list[float] = []
        self.large_tokens = 0

    def run(self) -> None:
        """Replay all steps in order."""
        before = self.total.changed
        for index, step in enumerate(self.traced.trail):
            model = self._model(index, step)
            self.books.write(model, step.position, step.tokens)
            self.previous = model
            self.large_tokens += step.tokens * (model == "large")
            self.total.steps += 1
            self.total.large_steps += model == "large"
            self.total.changed += model != step.model
        self.total.usage += self.books.usage
        self.total.requests += 1
        self.total.same += self.total.changed == before

    def _model(self, index: int, step: TracedStep) -> str:
        if self.standing:
            return self.standing.model
        looks_back = self.window.kind == "so-far" and self.policy.uses_window and index > 0
        if (self.policy.reads or looks_back) and step.signals is None:
            raise SteerError(
                f"request {self.traced.request}, step {index}: the trace has no signals there; "
                + (
                    "record one with early and as many steps"
                    if looks_back
                    else "record one with a policy that reads every boundary"
                )
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
            catch_up=step.position - self.books.computed[LARGE],
            signals=step.signals if last or self.window.kind != "step" else None,
            tried=tried,
            large_tokens=self.large_tokens,
            risk=1 - math.prod(1 - risk for risk in self.kept),
        )
