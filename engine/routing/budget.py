"""Caps on what the large model may do for one request."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from engine.routing.policy import Boundary, Decision


@dataclass(frozen=True)
class Budget:
    """Turns a decision for the large model into one for the small model where a cap is reached.

    A step that was handed over is written to its end, so the cost can exceed a cap by one step and
    by the small model's work for the rest.

    large_share: share of the written tokens that may be the large model's, in [0, 1].
    flops: FLOPs of both models for this request, catch-up included.
    """

    large_share: float = 1.0
    flops: float = math.inf

    @property
    def unlimited(self) -> bool:
        """Whether there is nothing to cap."""
        return self.large_share >= 1 and math.isinf(self.flops)

    def cap(self, decision: Decision, boundary: Boundary, flops: Callable[[], int]) -> Decision:
        """The decision, or one for the small model that gives the cap as its reason.

        Args:
            flops: gives the request's FLOPs including the large model's catch-up at this boundary.
        """
        if decision.model == "small" or self.unlimited:
            return decision
        written = boundary.position - boundary.prompt_tokens
        share = boundary.large_tokens / written if written else 0.0
        if share > self.large_share or self.large_share == 0:
            excess = f"large share {share:.3f}, cap {self.large_share:.3g}"
        elif math.isfinite(self.flops) and (spent := flops()) > self.flops:
            excess = f"{spent:.3g} FLOPs with this handoff, cap {self.flops:.3g}"
        else:
            return decision
        said = f"budget: {excess} ({decision.reason})"
        return replace(decision, model="small", reason=said, kind="budget")
