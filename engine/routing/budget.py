"""Caps on what the large model may do for one request."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from engine.routing.policies import Boundary, Decision


@dataclass(frozen=True)
class Budget:
    """Turns a decision for the large model into one for the small where a cap is reached.

    A step that has been handed over is written to its end, so what is spent can pass a cap by one
    step and what the small model needs for the rest.

    large_share: of the tokens written so far, at most this share by the large model.
    flops: of both models for this request, catch-up included.
    """

    large_share: float = 1.0
    flops: float = math.inf

    @property
    def unlimited(self) -> bool:
        """Whether there is nothing to cap."""
        return self.large_share >= 1 and math.isinf(self.flops)

    def cap(self, decision: Decision, boundary: Boundary, flops: Callable[[], int]) -> Decision:
        """The decision, or the small model with the reason.

        Args:
            flops: what the request would have cost once the large model has caught up.
        """
        if decision.model == "small" or self.unlimited:
            return decision
        written = boundary.position - boundary.prompt_tokens
        share = boundary.large_tokens / written if written else 0.0
        if share > self.large_share or self.large_share == 0:
            found = f"large share {share:.3f}, cap {self.large_share:.3g}"
        elif math.isfinite(self.flops) and (spent := flops()) > self.flops:
            found = f"{spent:.3g} FLOPs with this handoff, cap {self.flops:.3g}"
        else:
            return decision
        return replace(decision, model="small", reason=f"budget: {found} ({decision.reason})")
