"""The policies that decide step by step, each with the settings of its frontier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from engine import (
    AuditOnly,
    Calibration,
    CostAware,
    Judge,
    Policy,
    Random,
    Speculate,
    Steer,
    Threshold,
    Verify,
)
from engine.routing.signals import Signals
from engine.routing.windows import BOUNDARY, Window
from engine.tuning.samples import Sample
from engine.tuning.target import ladder

_WORTHS = (0.75, 1.0, 1.5, 2.0, 4.0)
_SHARES = (0.1, 0.25, 0.5)
# Shares of steps that a threshold's settings aim at, relative to STEER's own share.
_HANDED = (0.4, 0.8, 1.0, 1.3)
_TAUS = 5
_MARKS = (-2.0, -5.0, -9.0)  # log p of a step's least likely token
_BELIEFS = (0.1, 0.3, 0.7)  # marks of a verification
_ROLLBACK = "rollback:min:-5"


@dataclass(frozen=True)
class Setting:
    """One policy to run."""

    family: str
    parameter: float | None
    policy: Policy
    chosen: bool = False
    audit: str = "off"


def settings(
    calibration: Calibration, samples: Sequence[Sample], price: float
) -> Iterator[Setting]:
    """All settings that need no other one's result; ``samples``: of the calibration problems."""
    taus = ladder(calibration, samples)
    spread = {taus[round(i)] for i in np.linspace(0, len(taus) - 1, _TAUS)}
    for tau in sorted(spread | {calibration.tau}):
        yield Setting("steer", tau, Steer(calibration, tau), tau == calibration.tau)
    for worth in _WORTHS:
        yield Setting("steer-cost", worth, CostAware(calibration, worth, price))
    for share in _SHARES:
        yield Setting("random", share, Random(share))
    for mark in _MARKS:
        yield Setting("judge", mark, Judge(mark))
        yield Setting("audit", mark, AuditOnly(mark))
    for tau in sorted({*taus[1 : len(taus) // 2 : max(1, len(taus) // 6)], calibration.tau}):
        yield Setting("steer+audit", tau, Steer(calibration, tau), audit=_ROLLBACK)
    for worth in _WORTHS[1:4]:
        yield Setting(
            "steer-cost+audit", worth, CostAware(calibration, worth, price), audit=_ROLLBACK
        )
    yield Setting("speculate", None, Speculate(), chosen=True)
    for mark in _BELIEFS:
        yield Setting("verify", mark, Verify(mark=mark))
    window = Window.parse(calibration.window)
    own = [calibration.posterior(seen) < calibration.tau for seen in _seen(samples, window)]
    shares = [min(1.0, times * sum(own) / len(own)) for times in _HANDED]
    yield from _thresholds("threshold", "max_prob", window, samples, shares)
    yield from _thresholds("entropy", "entropy", BOUNDARY, samples, shares)
    yield from _thresholds("max-logit", "max_logit", window, samples, shares)
    yield from _thresholds("previous", "max_prob", Window("step", least=True), samples, shares)


def _seen(samples: Sequence[Sample], window: Window) -> list[Signals]:
    """The signals that decisions on the calibration problems would have seen."""
    looked = (s.seen(window, step) for s in samples for step in range(len(s.steps)))
    return [seen for seen in looked if seen is not None]


def _thresholds(
    family: str, signal: str, window: Window, samples: Sequence[Sample], shares: Sequence[float]
) -> Iterator[Setting]:
    """Values that would hand over these shares of the calibration problems' steps."""
    values = [float(getattr(seen, signal)) for seen in _seen(samples, window)]
    unsure = [1 - share for share in shares] if signal == "entropy" else shares
    for value in sorted({float(np.quantile(values, q)) for q in unsure}):
        yield Setting(family, value, Threshold(signal, value, window=window))
