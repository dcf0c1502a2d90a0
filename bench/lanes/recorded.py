"""Graphs that were recorded during a measurement: timed work should record none."""

from __future__ import annotations

from typing import Any

from engine import Engine
from engine.config import ROLES


class Recorded:
    """Counts of both lanes, small first, since this object was made."""

    def __init__(self, engine: Engine) -> None:
        # No reference to the engine: a dropped one must be freed before the next one is built.
        self._lanes = [engine.graph_counts[role] for role in ROLES]
        self._before = self._counts()

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of a row. misses: ticks whose graph was not recorded yet; each ran eagerly."""
        return {
            name: [now - then for now, then in zip(counts, self._before[name], strict=True)]
            for name, counts in self._counts().items()
        }

    def _counts(self) -> dict[str, list[int]]:
        return {
            "captures": [lane.captures for lane in self._lanes],
            "misses": [lane.misses for lane in self._lanes],
        }
