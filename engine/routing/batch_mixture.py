"""STEER's rule as a port of its authors' code shows it: a mixture of two normals over a batch.

At each step index, over the problems that still run: one mixture is fitted to the last steps that
the small model wrote, another to those that the large model wrote. The component with the lower
mean is the doubtful one. Which model writes a problem's next step follows from P(low), the
probability that its last step belongs to that component.

Where the fit differs from that code, which uses scikit-learn: EM starts once, from the best split
in two groups (there: the best of 10 starts by k-means); it stops later (there: at 1e-4, or after
100 rounds); a component is no narrower than 1% of the values' deviation; P(low) does not turn
around beyond the two means. Values that nothing tells apart have no mixture: the large model
writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.config import ROLES
from engine.errors import SteerError
from engine.routing.mixture import Mixture, fit_mixture, two_means
from engine.routing.policy import Decision
from engine.routing.signals import is_number

_SMALL, _LARGE = ROLES
_FAR = 5.0  # interquartile ranges beyond which a value takes no part in a fit


@dataclass(frozen=True)
class LastStep:
    """The step that a problem has just finished.

    writer: the role of the model that wrote it.
    score: the mean of its highest raw logits, over its maths tokens; None if it has none. Scores of
        the two models are never compared.
    """

    writer: str
    score: float | None


@dataclass(frozen=True)
class Marks:
    """The thresholds of the rule. SteerError on values out of range.

    doubtful: P(low) above which the large model writes the next step.
    hopeless: P(low) of a step of the large model above which the small one writes the rest.
    most_weight: of one component, in [0.5, 1]; above it all steps are of one kind.
    """

    doubtful: float = 0.4
    hopeless: float = 0.9
    most_weight: float = 0.99

    def __post_init__(self) -> None:
        marks = (self.doubtful, self.hopeless)
        if not all(is_number(mark, 0, 1) for mark in marks) or marks[0] > marks[1]:
            raise SteerError(f"marks must be in [0, 1], the first at most the second; got {marks}")
        if not is_number(self.most_weight, 0.5, 1):
            raise SteerError(f"most_weight must be in [0.5, 1], got {self.most_weight!r}")


MARKS = Marks()


def decide_batch(
    steps: Sequence[LastStep], marks: Marks = MARKS, least_running: int = 10
) -> list[Decision]:
    """Who writes the next step of each problem of a batch.

    After step 0, which the small model writes for all, "large" means that it is written again.

    Args:
        steps: the last steps of all problems that run and are not given up, at one step index.
        least_running: with fewer problems the large model writes them all.

    Returns:
        The decisions in the same order; one for the rest gives a problem up.
    """
    if len(steps) < least_running:
        few = f"fewer than {least_running} requests at this step: {len(steps)}"
        return [Decision(_LARGE, few, kind="fixed") for _ in steps]
    decisions: dict[int, Decision] = {}
    for writer in ROLES:
        members = [i for i, step in enumerate(steps) if step.writer == writer]
        scores = _filled([steps[i].score for i in members])
        mixture = fit_steps(scores)
        for place, i in enumerate(members):
            score = scores[place] if scores else None
            decisions[i] = judge(writer, score, mixture, marks)
    return [decisions[i] for i in range(len(steps))]


def judge(
    writer: str, score: float | None, mixture: Mixture | None, marks: Marks = MARKS
) -> Decision:
    """Who writes after a step of ``writer``.

    Args:
        score: of the step; None reads as the lowest there is.
        mixture: of this writer's steps; None if they could not be told apart.
    """
    if mixture is None or max(mixture.weights) > marks.most_weight:
        why = f"the {writer} model's steps are all of one kind"
        return Decision(_LARGE, why, kind="fixed")
    sure = mixture.posterior(-np.inf if score is None else score)
    low = 1 - sure
    if low <= marks.doubtful:
        return Decision(_SMALL, f"P(low) {low:.3f} <= {marks.doubtful:g}", sure, kind="sure")
    if writer == _LARGE and low > marks.hopeless:
        why = f"P(low) {low:.3f} > {marks.hopeless:g}: too hard for the large model too"
        return Decision(_SMALL, why, sure, rest=True, kind="doubtful")
    return Decision(_LARGE, f"P(low) {low:.3f} > {marks.doubtful:g}", sure, kind="doubtful")


def fit_steps(scores: Sequence[float]) -> Mixture | None:
    """The mixture of one model's steps; None where there are no two kinds of them."""
    near = _near(scores)
    try:
        return fit_mixture(near, least=2, kept=0.0, split=two_means(near))
    except SteerError:
        return None


def _filled(scores: Sequence[float | None]) -> list[float]:
    """The scores, those that are missing replaced by the lowest; empty if all are missing."""
    known = [score for score in scores if score is not None]
    lowest = min(known, default=0.0)
    return [lowest if score is None else score for score in scores] if known else []


def _near(scores: Sequence[float]) -> list[float]:
    """The scores within some interquartile ranges of the quartiles."""
    if not scores:
        return []
    first, third = np.quantile(scores, (0.25, 0.75))
    reach = _FAR * (third - first)
    if reach == 0:  # more than half are equal: the others are what there is to tell apart
        return list(scores)
    return [score for score in scores if first - reach <= score <= third + reach]
