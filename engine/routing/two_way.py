"""Policies that listen to the large model too: its doubt about a step that it has just written."""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.errors import SteerError
from engine.routing.asking import Suffixed
from engine.routing.policy import Boundary, Decision, Policy
from engine.routing.signals import is_number
from engine.routing.together import part_of

TWO_WAY, STICKY = "two-way", "sticky"


@dataclass(frozen=True)
class _LargeDoubt(Suffixed):
    """Another policy's decisions, except after a step of which the large model itself is unsure.

    policy: decides everywhere else.
    least: the large model is unsure of a step if the mean of its highest probabilities over the
        step's tokens, of those that a policy with a mask counts, is below this.

    SteerError if the other policy decides once: later boundaries would not be asked about.
    """

    policy: Policy
    least: float

    def __post_init__(self) -> None:
        if not is_number(self.least, 0, 1):
            raise SteerError(f"{self.suffix}: a mean probability is in [0, 1], got {self.least!r}")
        if part_of(self.policy).decides_once:
            raise SteerError(
                f"{self.suffix} cannot go with {self.policy.name}, which decides once: there is no "
                "later boundary to decide"
            )

    @property
    def asked(self) -> Policy:
        """The policy that decides everywhere else."""
        return self.policy

    @property
    def needs_large_signals(self) -> bool:
        """Always."""
        return True

    def doubt(self, boundary: Boundary) -> str | None:
        """The large model's doubt about its last step, in words; None if there is none."""
        if boundary.large_signals is None or boundary.large_signals.max_prob >= self.least:
            return None
        own = boundary.large_signals.max_prob
        return f"the large model's own max_prob {own:.4g} < {self.least:.4g}"


@dataclass(frozen=True)
class TwoWay(_LargeDoubt):
    """The work goes both ways: after a step of which the large model itself is unsure, the small
    model writes the next one. Elsewhere another policy decides, at every boundary: a decision of it
    that gives the large model the rest holds for a step.
    """

    suffix = TWO_WAY

    def decide(self, boundary: Boundary) -> Decision:
        """The small model after doubt of the large one, else as the other policy says."""
        doubt = self.doubt(boundary)
        if doubt:
            return Decision("small", f"{doubt}: the small one writes on", kind="doubtful")
        decision = self._other.decide(boundary)
        return replace(decision, rest=decision.rest and decision.model == "small")


@dataclass(frozen=True)
class Sticky(_LargeDoubt):
    """The large model keeps the pen after a handover for as long as it is itself unsure: after such
    a step of its own it writes the next one. Elsewhere another policy decides.
    """

    suffix = STICKY

    def decide(self, boundary: Boundary) -> Decision:
        """The large model after doubt of its own, else as the other policy says."""
        doubt = self.doubt(boundary)
        if doubt:
            return Decision("large", f"{doubt}: it keeps the pen", kind="doubtful")
        return self._other.decide(boundary)
