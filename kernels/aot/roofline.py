"""The roofline: a lower bound of an op's time, from what no version of it can avoid."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Roofline:
    """``bytes`` to and from memory and ``flops`` of one call, at least."""

    bytes: int
    flops: int

    def seconds(self, bandwidth: float, peak: float) -> float:
        """The bound, on a card of so many bytes a second and FLOPs a second."""
        return max(self.bytes / bandwidth, self.flops / peak)
