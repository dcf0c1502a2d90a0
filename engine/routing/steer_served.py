"""STEER's rule without a batch: the mixtures are those of a calibration."""

from __future__ import annotations

from dataclasses import dataclass

from engine.config import ROLES
from engine.errors import SteerError
from engine.routing.batch_mixture import MARKS, Marks, judge
from engine.routing.calibration import Calibration
from engine.routing.policy import Boundary, Decision, PolicyBase
from engine.routing.windows import LAST_STEP, Window
from engine.text.maths import TokenMask, maths_tokens


@dataclass(frozen=True)
class SteerServed(PolicyBase):
    """The large model writes where the last step was probably one of the low ones.

    A step's score is the mean of its writer's highest raw logits over the maths tokens. After a
    step of its own that is low beyond doubt, the large model leaves the rest to the small one. The
    small model writes step 0, which stands.

    calibration: with mixtures by step index (``steer calibrate --step-mixtures``).
    marks: the thresholds on P(low).
    mask: which tokens are maths; the one that the calibration was fitted with.
    """

    calibration: Calibration
    marks: Marks = MARKS
    mask: TokenMask = maths_tokens
    name: str = "steer-served"
    window: Window = LAST_STEP
    needs_large_signals: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.calibration, Calibration) or self.calibration.step_mixtures is None:
            raise SteerError(
                f"policy {self.name} needs a calibration with mixtures by step: fit one with "
                "`steer calibrate --step-mixtures`"
            )

    def decide(self, boundary: Boundary) -> Decision:
        """The small model at first, then by the mixture of the last step's writer and index."""
        writer = boundary.previous
        if writer is None:
            return Decision(ROLES[0], "no step to judge yet", kind="fixed")
        mixtures = self.calibration.step_mixtures
        assert mixtures is not None
        mixture = mixtures.at(writer, boundary.step - 1)
        return judge(writer, last_score(boundary), mixture, self.marks)


def last_score(boundary: Boundary) -> float | None:
    """The score of the step before a boundary, by its writer's signals; None without a maths
    token."""
    own = boundary.signals if boundary.previous == ROLES[0] else boundary.large_signals
    return None if own is None else own.max_logit
