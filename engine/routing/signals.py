"""The six signals of a token: all from the small model's logits at temperature 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from statistics import fmean
from typing import Any

from engine.errors import SteerError


@dataclass(frozen=True)
class Signals:
    """Signals of one token's distribution, or one summary of several. Natural logarithms.

    max_prob: highest probability.
    entropy: in nats.
    log_odds: log(p / (1 - p)) of the highest probability p.
    margin: highest logit minus the second highest.
    max_logit, logsumexp: the highest logit, and the logarithm of the sum of all exponentials.
    """

    max_prob: float
    entropy: float
    log_odds: float
    margin: float
    max_logit: float
    logsumexp: float

    @classmethod
    def mean(cls, tokens: Sequence[Signals]) -> Signals:
        """The mean of each signal; the log-odds are those of the mean probability."""
        sure = fmean(s.max_prob for s in tokens)
        # 1 - p rounds to 0 near p = 1: it is computed from the log-odds.
        unsure = fmean(1 / (1 + math.exp(min(s.log_odds, 700.0))) for s in tokens)
        return cls(
            max_prob=sure,
            entropy=fmean(s.entropy for s in tokens),
            log_odds=math.log(sure) - math.log(unsure) if unsure > 1e-300 else math.inf,
            margin=fmean(s.margin for s in tokens),
            max_logit=fmean(s.max_logit for s in tokens),
            logsumexp=fmean(s.logsumexp for s in tokens),
        )

    @classmethod
    def least(cls, tokens: Sequence[Signals]) -> Signals:
        """Each signal at its least sure token: the highest entropy, the lowest of the others."""
        lowest = {name: min(getattr(s, name) for s in tokens) for name in SIGNAL_NAMES}
        return cls(**lowest | {"entropy": max(s.entropy for s in tokens)})

    def to_json(self) -> dict[str, float]:
        """The fields as JSON values; infinities, which JSON lacks, become +-1e300."""
        limit = 1e300
        return {k: max(-limit, min(limit, v)) for k, v in asdict(self).items()}


SIGNAL_NAMES = tuple(Signals.__dataclass_fields__)  # columns of every table of signals, in order
# Beyond these a threshold on the signal would never, or always, be passed.
SIGNAL_RANGES = {"max_prob": (0.0, 1.0), "entropy": (0.0, math.inf), "margin": (0.0, math.inf)}
_CAP = 60.0  # log-odds beyond what fp32 logits resolve


def is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether this is a finite number in [low, high]; True and False are none."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    return number and low <= value <= high and abs(value) < math.inf


def check_signal(name: str) -> str:
    """The name itself; SteerError if no signal has it."""
    if name not in SIGNAL_NAMES:
        raise SteerError(f"unknown signal {name!r}; known: {', '.join(SIGNAL_NAMES)}")
    return name


def confidence_scale(name: str, signals: Signals) -> float:
    """A signal on a scale where higher is surer and a mixture of two normals can fit.

    Probabilities pile up at 1, so ``max_prob`` becomes log-odds; ``entropy`` becomes minus its
    logarithm; other signals keep their scale.
    """
    if name == "max_prob":
        name = "log_odds"
    value = float(getattr(signals, name))
    if name == "entropy":
        value = -math.log(max(value, 1e-26))
    return max(-_CAP, min(_CAP, value)) if name in ("log_odds", "entropy") else value
