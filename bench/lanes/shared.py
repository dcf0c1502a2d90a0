"""What benches that run one after another in one process hand on: the engine and the bandwidth."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.lanes.device import Bandwidth, Device
    from engine import Engine


class Shared:
    """Keeps the last engine that a bench built, and gives it to the next that asks for the same.

    A large model is loaded once that way. The bandwidth is measured once, before any model is
    loaded: it needs memory of its own.
    """

    def __init__(self, roughly: bool = False) -> None:
        """``roughly``: the bandwidth is measured at a size that says nothing."""
        self._roughly = roughly
        self._engine: Engine | None = None
        self._key: Hashable = None
        self._recorded = 0
        self._bandwidth: Bandwidth | None = None

    def bandwidth(self, device: Device, quick: bool) -> Bandwidth:
        """Of the device, measured when it is first asked for."""
        if self._bandwidth is None:
            self._bandwidth = device.bandwidth(quick or self._roughly)
        return self._bandwidth

    def engine(self, key: Hashable, at_once: int, build: Callable[[], Engine]) -> Engine:
        """The engine of ``key``: the one that is kept, or a new one in its place.

        Args:
            key: all that engines differ in. The engine kept before is dropped first where it has
                another key: a card holds one.
            at_once: sequences whose decodes must be recorded as graphs.
            build: makes it, with those graphs.
        """
        if self._engine is None or key != self._key:
            self._engine = None
            self._engine, self._key, self._recorded = build(), key, at_once
        elif at_once > self._recorded:
            self._engine.warm_up(min(at_once, self._engine.config.max_sequences))
            self._recorded = at_once
        return self._engine
