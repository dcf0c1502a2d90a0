"""Which signal over which window tells sure steps from unsure ones. No labels are needed.

Two numbers count. How far apart the mixture's components lie says whether there are two kinds of
boundaries at all, not what they mean: a step that was hard may be followed by an easy one. So each
step has a reference: how unsure the small model itself was of the tokens that it then wrote. The
area under the ROC curve says how well the signal, seen before the step, foretells that.
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

# On a mixture's scale max_prob is the log-odds.
SIGNALS = ("max_prob", "entropy", "margin", "max_logit", "logsumexp")
_PROBES = (2, 4, 8, 16, 32, 64)
LEAST_AREA = 0.75  # below it a signal hardly ranks
LEAST_APART = 2.0  # Ashman's D: below it two normals are not seen as two
FEW = 200  # boundaries


@dataclass(frozen=True)
class Finding:
    """What one signal over one window tells.

    count: boundaries that have it.
    mixture: None where none can be fitted; ``trouble`` says why.
    area: AUROC for the reference.
    errors: mean reference of either component.
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
        """Whether a calibration on it would mean anything."""
        return bool(
            self.mixture
            and self.area >= LEAST_AREA
            and self.separation >= LEAST_APART
            and self.errors[0] > self.errors[1]
        )

    @property
    def price(self) -> tuple[int, bool]:
        """Order of windows by what they cost: tokens on trial, the plain mean first."""
        window = Window.parse(self.window)
        return window.tokens, window.least

    @property
    def verdict(self) -> str:
        """In a few words."""
        if self.trouble:
            return self.trouble
        if self.usable:
            return "usable"
        if not self.area >= LEAST_AREA:
            return "does not foretell doubt"
        return "one kind of boundary"


def windows_for(samples: Sequence[Sample]) -> list[Window]:
    """Boundary, last step, and probes up to the length that takes in nearly all steps."""
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
    found = []
    for window in windows:
        pairs = [
            (seen, wrong)
            for sample, doubts in zip(samples, references, strict=True)
            for step, wrong in enumerate(doubts)
            if (seen := sample.seen(window, step)) is not None
        ]
        found += [_judge(signal, window, pairs) for signal in signals]
    return found


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

    ``slack``: of the area; some thousand boundaries give it to about half of that. None where no
    finding is usable. Windows of the last step see no tokens of the step itself; they count as
    cheap as the boundary.
    """
    usable = [f for f in findings if f.usable]
    if not usable:
        return None
    best = max(f.area for f in usable)
    near = [f for f in usable if f.area >= best - slack]
    cheapest = min(f.price for f in near)
    return max((f for f in near if f.price == cheapest), key=lambda f: round(f.area, 2))


def warnings(findings: Sequence[Finding]) -> list[str]:
    """What a user should know about the boundary signal, and about how much was seen."""
    lines = []
    count = max((f.count for f in findings), default=0)
    if count < FEW:
        lines.append(f"only {count} boundaries: below {FEW} neither fit nor tau can be trusted")
    first = [f for f in findings if f.window == "boundary"]
    if first and not any(f.usable for f in first):
        area = max(f.area for f in first)
        lines.append(
            "steps open with what is certain: no signal of the first token foretells doubt "
            f"(AUROC {area:.2f} at best; 0.5 is chance)"
        )
    return lines
