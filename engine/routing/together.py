"""Policies that decide for all requests of a batch at once, in lock-step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from engine.errors import SteerError
from engine.routing.policy import Boundary, Decision, PolicyBase, complete


@dataclass(frozen=True)
class Rewrite:
    """The step before the boundary is taken back, and the large model writes it.

    reason: a short text for logs and traces.
    """

    reason: str


# None: the request is asked about again when all others of the batch wait, too.
Answer = Decision | Rewrite | None


def part_of(policy: object) -> PolicyBase:
    """A policy as a part of another one. SteerError if it decides for a batch, or is none."""
    part = complete(policy)
    if isinstance(part, Together):
        raise SteerError(
            f"policy {part.name} decides for all requests of a batch: it cannot be a part of "
            "another policy"
        )
    return part


class Together(PolicyBase):
    """A policy that decides for a batch: the requests that share this object.

    It is asked when all of them wait at a boundary, except those that have a decision for the rest
    or have ended. If not all of a batch can run at once, it is asked about those that run, once no
    other request of the engine moves: give the engine room for the whole batch. Nothing of an
    answer settles before its end, so a stream shows it all at once.
    """

    @abstractmethod
    def decide_together(self, boundaries: Sequence[Boundary]) -> Sequence[Answer]:
        """An answer for each boundary, at least one of which is not None."""

    def decide(self, boundary: Boundary) -> Decision:
        """SteerError: one boundary alone cannot be decided."""
        raise SteerError(f"policy {self.name} decides for all requests of a batch at once")
