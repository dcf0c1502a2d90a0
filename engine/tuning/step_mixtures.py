"""Fits the mixtures by step index that the policy steer-served needs. No labels.

Both models write, half of the steps each, at random: so each model's steps follow steps of both, as
in use, and what a fit sees of a step is what the policy will see.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from engine.config import ROLES
from engine.conversation import Asked
from engine.engine import Engine
from engine.errors import SteerError
from engine.params import SamplingParams
from engine.routing.calibration import Calibration
from engine.routing.policies import Random
from engine.routing.policy import Boundary, Decision, PolicyBase
from engine.routing.steer_served import last_score
from engine.routing.step_mixtures import PairMixtures, StepMixtures
from engine.routing.windows import LAST_STEP, Window
from engine.text.maths import TokenMask, maths_tokens

_SHARE = 0.5  # share of the steps that the large model writes


@dataclass(frozen=True)
class _Watching(PolicyBase):
    """Routes at random and keeps the scores of steps by writer and index."""

    draws: Random
    mask: TokenMask = maths_tokens
    scores: dict[str, dict[int, list[float]]] = field(
        default_factory=lambda: {role: defaultdict(list) for role in ROLES}
    )
    name: str = "watching"
    window: Window = LAST_STEP
    needs_large_signals: bool = True

    def decide(self, boundary: Boundary) -> Decision:
        if boundary.previous is not None and (score := last_score(boundary)) is not None:
            self.scores[boundary.previous][boundary.step - 1].append(score)
        return self.draws.decide(boundary)


def with_step_mixtures(
    calibration: Calibration,
    engine: Engine,
    prompts: Sequence[Asked],
    params: SamplingParams,
    mask: TokenMask = maths_tokens,
    seed: int = 0,
) -> Calibration:
    """The calibration with mixtures by step index, from one run of both models.

    Args:
        mask: which tokens of a step count in its score.
        seed: of the random handoffs.

    Raises:
        SteerError: if a model's steps are too few, or all of one kind.
    """
    watching = _Watching(Random(_SHARE, seed), mask)
    engine.generate(prompts, params, watching)
    fitted, counts = {}, {}
    for role in ROLES:
        scores = watching.scores[role]
        try:
            fitted[role] = StepMixtures.fit(scores)
        except SteerError as error:
            raise SteerError(f"mixtures by step, {role} model: {error}") from None
        counts[role] = [len(scores.get(step, ())) for step in range(1 + max(scores))]
    provenance = {
        **calibration.provenance,
        "step_mixtures": {"random_share": _SHARE, "steps": counts},
    }
    mixtures = PairMixtures(fitted[ROLES[0]], fitted[ROLES[1]])
    return replace(calibration, step_mixtures=mixtures, provenance=provenance)
