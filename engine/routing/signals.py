"""The numbers that describe a boundary: all from the small model's logits at temperature 1."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from engine.errors import SteerError


@dataclass(frozen=True)
class Signals:
    """Statistics of the distribution of a step's first token. Natural logarithms."""

    max_prob: float
    entropy: float
    log_odds: float
    margin: float
    max_logit: float
    logsumexp: float

    def to_json(self) -> dict[str, float]:
        """Plain numbers; infinities become the largest finite value, JSON has none."""
        limit = 1e300
        return {k: max(-limit, min(limit, v)) for k, v in asdict(self).items()}


SIGNAL_NAMES = tuple(Signals.__dataclass_fields__)
_CAP = 60.0  # log-odds beyond what fp32 logits resolve


def check_signal(name: str) -> str:
    """The name itself, or SteerError."""
    if name not in SIGNAL_NAMES:
        raise SteerError(f"unknown signal {name!r}; known: {', '.join(SIGNAL_NAMES)}")
    return name


def confidence_scale(name: str, signals: Signals) -> float:
    """A signal on a scale where more is surer and a mixture of two normals can fit.

    Probabilities pile up at 1, so ``max_prob`` is taken as log-odds; ``entropy`` as minus its
    logarithm; the rest as they are.
    """
    if name == "max_prob":
        name = "log_odds"
    value = float(getattr(signals, name))
    if name == "entropy":
        value = -math.log(max(value, 1e-26))
    return max(-_CAP, min(_CAP, value)) if name in ("log_odds", "entropy") else value
