"""Graphs that were recorded while something was measured: in what is timed there should be none."""

from __future__ import annotations

from typing import Any

from engine import Engine
from engine.config import ROLES


class Recorded:
    """Counts of both lanes, small first, from when this was made."""

    def __init__(self, engine: Engine) -> None:
        # Not the engine: one that is dropped must go before the next one comes.
        self._lanes = [engine.graph_counts[role] for role in ROLES]
        self._before = self._counts()

    @property
    def fields(self) -> dict[str, Any]:
        """For a row. misses: ticks whose graph was yet to be recorded; each ran eagerly."""
        return {
            name: [now - then for now, then in zip(counts, self._before[name], strict=True)]
            for name, counts in self._counts().items()
        }

    def _counts(self) -> dict[str, list[int]]:
        return {
            "captures": [lane.captures for lane in self._lanes],
            "misses": [lane.misses for lane in self._lanes],
        }
