"""The decisions of one request by position, and the risk that they add up to."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from engine.routing.policy import Boundary, Decision


class DecisionLog:
    """Boundaries and their decisions, in the order of positions."""

    def __init__(self) -> None:
        self._positions: list[int] = []
        self._entries: list[tuple[Boundary, Decision]] = []
        # Of the first n decisions: the product of 1 - risk, multiplied from the first one on.
        self._right: list[float] = [1]

    def risk(self, position: int) -> float:
        """1 minus the product of 1 - risk over the decisions before a position."""
        return 1 - self._right[bisect_left(self._positions, position)]

    def cut(self, position: int) -> None:
        """Drop the decisions from a position on: a truncation has undone them."""
        number = bisect_left(self._positions, position)
        del self._positions[number:], self._entries[number:], self._right[number + 1 :]

    def add(self, boundary: Boundary, decision: Decision) -> None:
        """Add a decision after all others."""
        self._positions.append(boundary.position)
        self._entries.append((boundary, decision))
        self._right.append(self._right[-1] * (1 - decision.risk))

    def of(self, position: int) -> tuple[Boundary, Decision] | None:
        """The last decision at a position or before it."""
        number = bisect_right(self._positions, position)
        return self._entries[number - 1] if number else None
