"""State that benches in one process hand on from one to the next: the engine and the bandwidth."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.lanes.device import Bandwidth, Device
    from engine import Engine


class Shared:
    """Keeps the last engine that a bench built, and gives it to the next that asks for the same.

    So a large model is loaded only once. The bandwidth is measured once, before any model is
    loaded: it needs memory of its own.
    """

    def __init__(self, roughly: bool = False) -> None:
        """``roughly``: measure the bandwidth at a size too small to be meaningful."""
        self._roughly = roughly
        self._engine: Engine | None = None
        self._key: Hashable = None
        self._recorded = 0
        self._bandwidth: Bandwidth | None = None

    def bandwidth(self, device: Device, quick: bool) -> Bandwidth:
        """The device's bandwidth, measured at the first call."""
        if self._bandwidth is None:
            self._bandwidth = device.bandwidth(quick or self._roughly)
        return self._bandwidth

    def engine(self, key: Hashable, at_once: int, build: Callable[[], Engine]) -> Engine:
        """The engine of ``key``: the one that is kept, or a new one in its place.

        Args:
            key: all settings of the engine. A kept engine with another key is dropped first: a card
                holds one.
            at_once: sequences whose decodes must be recorded as graphs.
            build: makes the engine, with those graphs.
        """
        if self._engine is None or key != self._key:
            self._engine = None
            self._engine, self._key, self._recorded = build(), key, at_once
        elif at_once > self._recorded:
            self._engine.warm_up(min(at_once, self._engine.config.max_sequences))
            self._recorded = at_once
        return self._engine
