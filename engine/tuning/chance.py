"""Says whether a signal is better than chance at telling wrong answers from right ones.

Known answers say nothing about single steps. So an answer's score is the signal at its least sure
step. Longer answers have lower minima and more errors, whatever the signal: the area under the ROC
curve by chance is that of the same values shuffled among all steps, and at least a half.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from engine.routing.signals import confidence_scale
from engine.routing.speculation import MARK, VERIFY
from engine.routing.windows import Window
from engine.tuning.ranking import CHANCE, auroc, auroc_interval
from engine.tuning.samples import Sample
from engine.tuning.separability import Finding

_SHUFFLES = 40
_PICKED = 0.995  # interval of a finding that is picked among many: the best of them by luck is high
_CASCADE = "cascade:max_prob:0.9"
_UNKNOWN = (
    "without answers AUROC is about the small model's own doubt: whether it is sure and wrong "
    'cannot be seen; give each prompt an "answer", or measure a policy on others'
)


@dataclass(frozen=True)
class AnswerArea:
    """How well a signal over a window tells wrong answers from right ones.

    area, low, high: AUROC with its interval, by a bootstrap over answers; NaN if all answers are
        right, or all wrong.
    by_chance: AUROC of the same values in other places, 0.5 or more.
    level: chance that the interval is meant to cover.
    """

    signal: str
    window: str
    area: float
    low: float
    high: float
    by_chance: float
    level: float

    @property
    def better(self) -> bool:
        """Whether the whole interval is above chance."""
        return self.low > self.by_chance

    def __str__(self) -> str:
        return (
            f"AUROC {self.area:.3f} ({100 * self.level:g}% interval {self.low:.3f} - "
            f"{self.high:.3f}; "
            f"{self.by_chance:.3f} by chance)"
        )


def answer_area(
    samples: Sequence[Sample], right: Sequence[bool], signal: str, window: str, level: float = 0.95
) -> AnswerArea:
    """The area of a signal's least sure step; answers without the signal are left out."""
    looked = Window.parse(window)
    scores: list[list[float]] = []
    wrong: list[bool] = []
    for sample, is_right in zip(samples, right, strict=True):
        seen = [sample.seen(looked, step) for step in range(len(sample.steps))]
        own = [confidence_scale(signal, each) for each in seen if each is not None]
        if own:
            scores.append(own)
            wrong.append(not is_right)
    lowest = [min(own) for own in scores]
    area, low, high = auroc_interval(lowest, wrong, range(len(lowest)), level=level)
    return AnswerArea(signal, window, area, low, high, _by_chance(scores, wrong), level)


def _by_chance(scores: Sequence[Sequence[float]], wrong: Sequence[bool]) -> float:
    """The mean area of shuffled values, at least a half."""
    values = np.concatenate([np.zeros(0), *map(np.asarray, scores)])
    ends = np.cumsum([len(own) for own in scores])[:-1]
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(_SHUFFLES):
        parts = np.split(rng.permutation(values), ends)
        areas.append(auroc([float(part.min()) for part in parts if part.size], wrong))
    return max(CHANCE, fmean(areas))  # max() keeps the half where the mean is NaN


def remedy(retokenize: bool = False) -> str:
    """What to do where no signal helps. Verification needs a pair with the same tokens."""
    cascade = f"a cascade (--policy {_CASCADE}) or the large model alone"
    if retokenize:
        return f"use {cascade}"
    return f"use verification (--policy {VERIFY}:{MARK:g}, no calibration needed), {cascade}"


def chance_lines(
    samples: Sequence[Sample],
    right: Sequence[bool] | None,
    chosen: Finding,
    findings: Sequence[Finding],
    retokenize: bool = False,
) -> list[str]:
    """Lines for the user on whether the chosen finding, or any, is better than chance.

    Args:
        right: for each sample whether its answer is right; None if not known.
    """
    if right is None:
        return [_UNKNOWN]
    found, count = answer_area(samples, right, chosen.signal, chosen.window), len(right)
    wrong = count - sum(right)
    if math.isnan(found.area):
        same = "right" if not wrong else "wrong"
        return [
            f"all {count} answers of the small model are {same}: no signal can be judged by them"
        ]
    about = f"at telling its {wrong} wrong answers from {count - wrong} right ones by the least"
    verdict = "better than chance" if found.better else "no better than chance"
    line = f"{chosen.signal} over {chosen.window} is {verdict} {about} sure step: {found}"
    if found.better:
        return [line]
    others = [f for f in findings if f is not chosen]
    return [f"warning: {line}", _instead(samples, right, others, remedy(retokenize))]


def _instead(
    samples: Sequence[Sample], right: Sequence[bool], others: Sequence[Finding], use: str
) -> str:
    """What to do where the chosen finding is no better than chance."""
    if not others:
        return f"warning: do not route by it on these prompts: {use}"
    areas = [answer_area(samples, right, f.signal, f.window, _PICKED) for f in others]
    better = [each for each in areas if each.better]
    if not better:
        return f"warning: nor is any of {len(others)} other signals and windows: {use}"
    best = max(better, key=lambda each: each.low)
    return (
        f"best by the answers: {best.signal} over {best.window}, {best}; it was picked among "
        f"{len(others)}, so measure it on other prompts, or {use}"
    )
