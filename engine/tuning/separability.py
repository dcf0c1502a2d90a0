"""Measures which signal over which window separates sure steps from unsure ones, without labels.

Two numbers decide. The separation of the mixture's components says whether there are two kinds of
boundaries at all, but not what they mean: a hard step may be followed by an easy one. So each step
has a reference: how unsure the small model was of the tokens that it then wrote. The area under the
ROC curve says how well the signal, known before the step, predicts that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.errors import SteerError
from engine.routing.mixture import Mixture, fit_mixture
from engine.routing.signals import Signals, confidence_scale
from engine.routing.windows import Window
from engine.tuning.ranking import auroc
from engine.tuning.samples import Sample, doubt

# Without log_odds: on a mixture's scale max_prob is the same.
SIGNALS = ("max_prob", "entropy", "margin", "max_logit", "logsumexp")
_PROBES = (2, 4, 8, 16, 32, 64)
LEAST_AREA = 0.75  # AUROC below which a signal predicts too little
LEAST_APART = 2.0  # Ashman's D below which two normals are not distinct
FEW = 200  # boundaries below which results are unreliable


@dataclass(frozen=True)
class Finding:
    """The measurements of one signal over one window.

    count: boundaries that have the signal.
    mixture: the fitted mixture; None if the fit failed, ``trouble`` then says why.
    area: AUROC of the signal for the reference.
    errors: mean reference of the unsure and the sure component.
    """

    signal: str
    window: str
    count: int
    mixture: Mixture | None
    area: float
    errors: tuple[float, float] = (1.0, 0.0)
    trouble: str = ""

    @property
    def separation(self) -> float:
        """Distance of the components in units of their deviation; 0 without a mixture."""
        return self.mixture.separation if self.mixture else 0.0

    @property
    def usable(self) -> bool:
        """Whether a calibration on it makes sense."""
        return bool(
            self.mixture
            and self.area >= LEAST_AREA
            and self.separation >= LEAST_APART
            and self.errors[0] > self.errors[1]
        )

    @property
    def price(self) -> tuple[int, bool]:
        """Sort key of windows by cost: tokens on trial, the plain mean first."""
        window = Window.parse(self.window)
        return window.tokens, window.least

    @property
    def verdict(self) -> str:
        """The result in a few words, for tables."""
        if self.trouble:
            return self.trouble
        if self.usable:
            return "usable"
        if not self.area >= LEAST_AREA:
            return "does not predict doubt"
        return "one kind of boundary"


def windows_for(samples: Sequence[Sample]) -> list[Window]:
    """Boundary, last step, and probes up to a length that covers nearly all steps."""
    lengths = [len(step) for sample in samples for step in sample.steps]
    long = float(np.quantile(lengths, 0.95))
    probes = [k for i, k in enumerate(_PROBES) if i == 0 or _PROBES[i - 1] < long]
    names = ["boundary", "step", "step:least"]
    names += [f"probe:{k}{least}" for k in probes for least in ("", ":least")]
    return [Window.parse(name) for name in names]


def judge_windows(
    samples: Sequence[Sample], windows: Sequence[Window], signals: Sequence[str] = SIGNALS
) -> list[Finding]:
    """A finding for each signal over each window."""
    references = [[doubt(step) for step in sample.steps] for sample in samples]
    findings = []
    for window in windows:
        pairs = [
            (seen, wrong)
            for sample, doubts in zip(samples, references, strict=True)
            for step, wrong in enumerate(doubts)
            if (seen := sample.seen(window, step)) is not None
        ]
        findings += [_judge(signal, window, pairs) for signal in signals]
    return findings


def _judge(signal: str, window: Window, pairs: Sequence[tuple[Signals, float]]) -> Finding:
    values = [confidence_scale(signal, seen) for seen, _ in pairs]
    wrong = [doubt for _, doubt in pairs]
    area = auroc(values, wrong) if pairs else math.nan
    try:
        mixture = fit_mixture(values)
    except SteerError as error:
        return Finding(signal, str(window), len(values), None, area, trouble=str(error))
    sure = np.array([mixture.posterior(v) for v in values])
    low, high = (float((part * wrong).sum() / max(part.sum(), 1e-12)) for part in (1 - sure, sure))
    return Finding(signal, str(window), len(values), mixture, area, (low, high))


def recommend(findings: Sequence[Finding], slack: float = 0.02) -> Finding | None:
    """The cheapest window that ranks nearly as well as the best, and its best signal.

    None if no finding is usable. A window of the last step needs no tokens of the next one, so it
    counts as cheap as the boundary.

    ``slack``: difference in AUROC that still counts as nearly as good; the error of the estimate on
    a few thousand boundaries is about half of the default.
    """
    usable = [f for f in findings if f.usable]
    if not usable:
        return None
    best = max(f.area for f in usable)
    near = [f for f in usable if f.area >= best - slack]
    cheapest = min(f.price for f in near)
    return max((f for f in near if f.price == cheapest), key=lambda f: round(f.area, 2))


def warnings(findings: Sequence[Finding]) -> list[str]:
    """Warnings for the user on too little data and on a useless boundary signal."""
    lines = []
    count = max((f.count for f in findings), default=0)
    if count < FEW:
        lines.append(f"only {count} boundaries: below {FEW} neither fit nor tau can be trusted")
    first = [f for f in findings if f.window == "boundary"]
    if first and not any(f.usable for f in first):
        area = max(f.area for f in first)
        lines.append(
            "steps open with what is certain: no signal of the first token predicts doubt "
            f"(AUROC {area:.2f} at best; 0.5 is chance)"
        )
    return lines
