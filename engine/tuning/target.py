"""Chooses tau for a user's target: an accuracy, a share of large steps, a budget of FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from engine.accounting.ledger import Usage
from engine.accounting.pricing import ACCOUNTINGS, pair_flops
from engine.conversation import Asked
from engine.engine import Engine
from engine.errors import SteerError
from engine.params import SamplingParams
from engine.request import Completion
from engine.routing.calibration import Calibration
from engine.routing.policy import Policy
from engine.routing.steer import Steer
from engine.routing.windows import Window
from engine.tuning.answers import agree
from engine.tuning.fitting import BAYES
from engine.tuning.prompts import IsRight
from engine.tuning.samples import Sample

FORMS = "loss:X, accuracy:X, agreement:X, share:X, flops:X or flops:X:ACCOUNTING"
_TAUS = (0.5, 0.7, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
_RUNGS = 24


@dataclass(frozen=True)
class Target:
    """The target that tau is chosen for.

    kind: ``loss``, accuracy at most ``value`` below the large model's; ``accuracy``, at least
        ``value``; ``agreement``, the large model agrees with this share of the kept steps that it
        has read; ``share``, at most this share of steps by the large model; ``flops``, at most this
        share of the FLOPs of the large model alone, in one of the accountings.
    value: in [0, 1].
    """

    kind: str
    value: float
    accounting: str = "catchup"

    @classmethod
    def parse(cls, text: str) -> Target:
        """A target from KIND:VALUE or flops:VALUE:ACCOUNTING. SteerError on any other text."""
        kind, *rest = text.split(":")
        known = kind in ("loss", "accuracy", "agreement", "share") and len(rest) == 1
        known |= kind == "flops" and len(rest) in (1, 2)
        try:
            value = float(rest[0]) if known else float("nan")
        except ValueError:
            value = float("nan")
        accounting = rest[1] if known and len(rest) == 2 else "catchup"
        if not 0 <= value <= 1 or accounting not in ACCOUNTINGS:
            raise SteerError(
                f"target {text!r}: expected {FORMS} with X in [0, 1] and an accounting of "
                f"{', '.join(ACCOUNTINGS)}"
            )
        return cls(kind, value, accounting)

    def __str__(self) -> str:
        tail = f":{self.accounting}" if self.kind == "flops" else ""
        return f"{self.kind}:{self.value:g}{tail}"

    @property
    def rises(self) -> bool:
        """Whether the target is a lower bound on a number that rises with tau."""
        return self.kind in ("loss", "accuracy")

    def met(self, run: Run, large: Run) -> bool:
        """Whether a run meets the target; FLOPs are relative to the large model's run."""
        if self.kind == "loss":
            return run.accuracy >= large.accuracy - self.value
        if self.kind == "accuracy":
            return run.accuracy >= self.value
        if self.kind == "share":
            return run.share <= self.value
        return run.flops[self.accounting] <= self.value * large.flops[self.accounting]


@dataclass(frozen=True)
class Run:
    """Results of one policy on the prompts: accuracy, share of large steps, FLOPs by accounting."""

    accuracy: float
    share: float
    flops: dict[str, int]


class Bench:
    """Runs policies on the same prompts. Without known answers the large model's count as right."""

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[Asked],
        params: SamplingParams,
        is_right: IsRight | None = None,
    ) -> None:
        self._engine, self._prompts, self._params = engine, prompts, params
        alone = engine.generate(prompts, params, "large")
        aims = [c.text for c in alone]
        self.is_right: IsRight = is_right or (lambda i, text: agree(text, aims[i]))
        self.reference = "the answers" if is_right else "the large model's answers"
        self.large = self.judge(alone)

    def run(self, policy: Policy) -> Run:
        """Run one policy."""
        return self.judge(self.answers(policy))

    def answers(self, policy: Policy) -> list[Completion]:
        """A policy's answers to the prompts."""
        return self._engine.generate(self._prompts, self._params, policy)

    def judge(self, done: Sequence[Completion]) -> Run:
        """The results of answers to the prompts."""
        usage = sum((c.usage for c in done), Usage())
        steps = [s.model == "large" for c in done for s in c.steps]
        return Run(
            sum(self.is_right(i, c.text) for i, c in enumerate(done)) / len(done),
            sum(steps) / max(1, len(steps)),
            {a: pair_flops(usage, self._engine.shapes, a) for a in ACCOUNTINGS},
        )


def ladder(calibration: Calibration, samples: Sequence[Sample]) -> list[float]:
    """Ascending values of tau that each hand over a different share of the samples' boundaries."""
    window = Window.parse(calibration.window)
    sure = np.sort(
        [
            calibration.posterior(seen)
            for sample in samples
            for step in range(len(sample.steps))
            if (seen := sample.seen(window, step)) is not None
        ]
    )
    rungs = {float(np.quantile(sure, q)) for q in np.linspace(0, 1, _RUNGS)}
    by_count: dict[int, float] = {}
    for tau in sorted(rungs | set(_TAUS), key=lambda tau: (abs(tau - BAYES), tau)):
        by_count.setdefault(int((sure < tau).sum()), tau)
    return sorted(by_count.values())


def choose_tau(
    calibration: Calibration, samples: Sequence[Sample], target: Target, bench: Bench
) -> Calibration:
    """The calibration at the tau that just meets the target, by bisection of the ladder.

    Accuracy and cost rise with tau, up to noise. If no tau is good enough, the nearest end of the
    ladder is taken, and the provenance says so.
    """
    taus = ladder(calibration, samples)
    runs: dict[float, Run] = {}

    def met(index: int) -> bool:
        tau = taus[index]
        runs[tau] = runs.get(tau) or bench.run(Steer(calibration, tau))
        return target.met(runs[tau], bench.large) is target.rises

    low, high = 0, len(taus) - 1  # the first rung where met() holds, else the last
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if met(middle) else (middle + 1, high)
    # For a lower bound this rung is the first good one; for an upper bound the one before it is the
    # last good one.
    over = met(low)
    chosen = low if target.rises else max(low - over, 0)
    met(chosen)
    best = runs[taus[chosen]]
    return replace(
        calibration,
        tau=taus[chosen],
        provenance={
            **calibration.provenance,
            "aim": f"{target} against {bench.reference}",
            "aim_reached": target.met(best, bench.large),
            "large_alone": asdict(bench.large),
            "grid": [_row(tau, runs[tau], bench.large) for tau in sorted(runs)],
        },
    )


def _row(tau: float, run: Run, large: Run) -> dict[str, Any]:
    relative = {f"flops_{a}": run.flops[a] / large.flops[a] for a in run.flops}
    return {"tau": tau, "accuracy": run.accuracy, "large": run.share, **relative}
