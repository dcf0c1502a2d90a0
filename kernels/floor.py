"""The least that an op could cost: what no version can avoid."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Floor:
    """``bytes`` to and from memory and ``flops`` of one call."""

    bytes: int
    flops: int

    def seconds(self, bandwidth: float, peak: float) -> float:
        """The roofline: bytes a second and FLOPs a second of a card."""
        return max(self.bytes / bandwidth, self.flops / peak)
