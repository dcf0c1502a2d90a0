"""What a score of steps is worth: the accuracy if the large model takes over where it is low.

The policy that is valued: the small model writes, and at the first step whose score is at most a
mark the large model writes this step and all that follows. Its accuracy needs no estimate: the
continuations *are* these answers. Steps written by the large model are counted in the small model's
steps. Policies that hand back after one step are not valued here: no continuation shows them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bench.step_signals.continuations import Outcomes

_DRAWS = 50  # of scores without any sense, for the accuracy of chance

Floats = npt.NDArray[np.float64]


def takeover_curve(
    scores: Sequence[Sequence[float | None]], outcomes: Sequence[Outcomes]
) -> tuple[Floats, Floats]:
    """Shares of steps written by the large model, ascending, and accuracies, for each mark.

    Args:
        scores: of each step of each answer; a step without one is never a reason to take over.
        outcomes: of each answer.

    Returns:
        Two arrays of equal length, from the small model alone on.
    """
    steps = np.array([len(own) for own in scores])
    table = np.full((len(steps), steps.max()), np.inf)
    for row, own in zip(table, scores, strict=True):
        row[: len(own)] = [np.inf if score is None else score for score in own]
    lowest = np.minimum.accumulate(table, axis=1)
    right = np.zeros((len(steps), steps.max() + 1))
    for row, each in zip(right, outcomes, strict=True):
        row[: len(each.right)] = each.right
    marks = np.unique(table[np.isfinite(table)])
    shares, accuracies = [], []
    for mark in [-np.inf, *marks]:
        taken = np.minimum((lowest > mark).sum(axis=1), steps)
        shares.append((steps - taken).sum() / steps.sum())
        accuracies.append(right[np.arange(len(steps)), taken].mean())
    return np.array(shares), np.array(accuracies)


def accuracy_at(curve: tuple[Floats, Floats], share: float) -> float:
    """The accuracy where the large model writes this share of the steps.

    Between two marks answers are drawn at random to follow the one or the other, so it is linear.
    """
    return float(np.interp(share, *curve))


def caught_at(scores: Sequence[float], wrong: Sequence[bool], share: float) -> float:
    """Share of wrong steps among the ``share`` of judged steps with the lowest scores; ties are
    drawn at random. NaN without wrong steps."""
    values, bad = np.asarray(scores, np.float64), np.asarray(wrong, bool)
    if not bad.any():
        return float("nan")
    marks, groups = np.unique(values, return_inverse=True)
    counts = np.bincount(groups, minlength=marks.size)
    found = np.bincount(groups, bad, minlength=marks.size)
    covered = np.concatenate([[0], np.cumsum(counts) / values.size])
    return float(np.interp(share, covered, np.concatenate([[0], np.cumsum(found) / bad.sum()])))


def by_chance(outcomes: Sequence[Outcomes], share: float, seed: int = 0) -> float:
    """The accuracy of scores without any sense at a share, the mean of 50 draws."""
    rng = np.random.default_rng(seed)
    curves = (
        takeover_curve([rng.random(len(each.right) - 1).tolist() for each in outcomes], outcomes)
        for _ in range(_DRAWS)
    )
    return float(np.mean([accuracy_at(curve, share) for curve in curves]))


def by_oracle(outcomes: Sequence[Outcomes], share: float) -> float:
    """The accuracy of scores that know the wrong steps, at a share."""
    known = [[0.0 if o.wrong(i) else None for i in range(len(o.right) - 1)] for o in outcomes]
    return accuracy_at(takeover_curve(known, outcomes), share)
