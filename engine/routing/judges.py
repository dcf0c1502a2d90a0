"""Policies that let the small model write and the large model audit what it wrote."""

from __future__ import annotations

from dataclasses import dataclass

from engine.routing.audit import Audit
from engine.routing.policy import Boundary, Decision, PolicyBase


@dataclass(frozen=True)
class Judge(PolicyBase):
    """The large model reads each finished step, the last one too, and rewrites those it doubts.

    As in SpecReason (Pan et al., arXiv 2504.07891), with the step's likelihood in place of a verbal
    mark. The rows read for it are counted.
    """

    mark: float = -6.0
    score: str = "min"
    name: str = "judge"
    reads: bool = True
    reader: str = "large"

    def __post_init__(self) -> None:
        _ = self.audit  # checks mark and score

    @property
    def audit(self) -> Audit:
        """The audit of each step."""
        return Audit("rollback", self.score, self.mark)

    def decide(self, boundary: Boundary) -> Decision:
        """The small model; the audit may take the step back."""
        return Decision("small", "to be judged", kind="fixed")


@dataclass(frozen=True)
class AuditOnly(PolicyBase):
    """The small model writes a whole answer; the large one reads it and goes on from the first
    step that it doubts.
    """

    mark: float = -6.0
    score: str = "min"
    name: str = "audit"
    reads: bool = True
    reader: str = "large"
    decides_once = True

    def __post_init__(self) -> None:
        _ = self.audit  # checks mark and score

    @property
    def audit(self) -> Audit:
        """The audit of the answer."""
        return Audit("rollback", self.score, self.mark, rest=True)

    def decide(self, boundary: Boundary) -> Decision:
        """The small model for the rest; only the audit changes that."""
        return Decision("small", "to be audited", rest=True, kind="fixed")
