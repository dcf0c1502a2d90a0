"""Policies that let the small model write and the large one read it: their rule is an audit."""

from __future__ import annotations

from dataclasses import dataclass

from engine.routing.audit import Audit
from engine.routing.policies import Boundary, Decision


@dataclass(frozen=True)
class Judge:
    """The large model reads each finished step, the last one too, and rewrites what it doubts.

    After SpecReason (Pan et al., arXiv 2504.07891), with the step's likelihood in place of a
    verbal mark. What it reads for that is in the books.
    """

    mark: float = -6.0
    score: str = "min"
    name: str = "judge"
    reads: bool = True
    reader: str = "large"

    @property
    def audit(self) -> Audit:
        """Its rule."""
        return Audit("rollback", self.score, self.mark)

    def decide(self, boundary: Boundary) -> Decision:
        """The small model, wherever the audit has nothing against it."""
        return Decision("small", "to be judged")


@dataclass(frozen=True)
class AuditOnly:
    """The small model writes all; the large one reads it once and writes on from a first doubt."""

    mark: float = -6.0
    score: str = "min"
    name: str = "audit"
    reads: bool = True
    reader: str = "large"

    @property
    def audit(self) -> Audit:
        """Its rule."""
        return Audit("rollback", self.score, self.mark, rest=True)

    def decide(self, boundary: Boundary) -> Decision:
        """The small model, for good: only the audit ends that."""
        return Decision("small", "to be audited", rest=True)
