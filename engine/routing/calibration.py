"""A calibration: a JSON file on how one signal of a pair separates sure and unsure boundaries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.config import DUMMY
from engine.errors import SteerError
from engine.files import parse_json, path_of, read_text
from engine.routing.answer_shape import AnswerShape
from engine.routing.mixture import Mixture, fit_mixture
from engine.routing.signals import Signals, check_signal, confidence_scale, is_number
from engine.routing.step_mixtures import PairMixtures
from engine.routing.windows import Window

SCHEMA = "steer-calibration/1"


@dataclass(frozen=True)
class Calibration:
    """A fitted mixture, the threshold on its posterior, and where both come from.

    pair: fingerprint of the engine that it was fitted on (``Engine.fingerprint``); the numbers mean
        nothing for another pair.
    errors: for the unsure and the sure component, chance that the small model errs in a step.
    shape: lengths of answers; None where they were not counted.
    step_mixtures: of both models' scores by step index, for steer-served; None where they were not
        fitted.
    """

    pair: str
    signal: str
    mixture: Mixture
    tau: float
    window: str = "boundary"
    provenance: dict[str, Any] = field(default_factory=dict, hash=False)
    errors: tuple[float, float] = (1.0, 0.0)
    shape: AnswerShape | None = None
    step_mixtures: PairMixtures | None = None

    def __post_init__(self) -> None:
        check_signal(self.signal)
        if not is_number(self.tau, 0, 1):
            raise SteerError(f"tau must be in [0, 1], got {self.tau!r}")
        Window.parse(self.window)
        if not all(0 <= e <= 1 for e in self.errors):
            raise SteerError(f"errors must be in [0, 1], got {self.errors}")

    def posterior(self, signals: Signals) -> float:
        """Probability that the boundary is one of the confident ones."""
        return self.mixture.posterior(confidence_scale(self.signal, signals))

    def error(self, signals: Signals) -> float:
        """Chance that the small model errs in the step."""
        sure = self.posterior(signals)
        return (1 - sure) * self.errors[0] + sure * self.errors[1]

    @classmethod
    def fit(
        cls,
        pair: str,
        signal: str,
        boundaries: Sequence[Signals | None],
        tau: float = 0.5,
        window: str = "boundary",
    ) -> Calibration:
        """Fit the mixture to the signal of a window at many boundaries. No labels.

        Boundaries without signals (those that a window of the last step cannot judge) are left out.
        SteerError for a pair with made-up weights: its signals mean nothing.
        """
        if pair.startswith(DUMMY):
            raise SteerError(f"{pair}: dummy weights calibrate nothing; load real ones")
        check_signal(signal)
        values = [confidence_scale(signal, s) for s in boundaries if s is not None]
        provenance = {"boundaries": len(values)}
        return cls(pair, signal, fit_mixture(values), tau, window, provenance)

    def save(self, path: str | Path) -> None:
        """Write the file."""
        steps = self.step_mixtures
        content = {
            "schema": SCHEMA,
            "pair": self.pair,
            "signal": self.signal,
            "window": self.window,
            "tau": self.tau,
            "mixture": self.mixture.to_json(),
            "errors": self.errors,
            "shape": self.shape and self.shape.to_json(),
            **({"step_mixtures": steps.to_json()} if steps else {}),
            "provenance": self.provenance,
        }
        path_of(path, "a calibration's path").write_text(json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path, pair: str) -> Calibration:
        """Read a file that was fitted on ``pair``. SteerError on anything else."""
        path = path_of(path, "a calibration's path")
        text = read_text(path, "calibration file")
        try:
            raw = parse_json(text)
            schema = raw.get("schema")
            if schema != SCHEMA:
                raise SteerError(f"{path}: schema is {schema!r}, expected {SCHEMA!r}")
            steps = raw.get("step_mixtures")
            calibration = cls(
                pair=raw["pair"],
                signal=raw["signal"],
                mixture=Mixture.from_json(raw["mixture"]),
                tau=float(raw["tau"]),
                window=raw["window"],
                provenance=raw["provenance"],
                errors=_errors(raw.get("errors", (1.0, 0.0))),  # older files lack these
                shape=AnswerShape.from_json(raw["shape"]) if raw.get("shape") else None,
                step_mixtures=PairMixtures.from_json(steps) if steps is not None else None,
            )
        except SteerError as error:
            raise SteerError(f"{path}: {error}".replace(f"{path}: {path}", f"{path}")) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SteerError(f"{path}: not a calibration file: {error}") from None
        if calibration.pair != pair:
            raise SteerError(
                f"{path}: fitted on pair {calibration.pair}, this engine is {pair}; calibrate again"
            )
        return calibration


def _errors(values: Sequence[float]) -> tuple[float, float]:
    low, high = values
    return float(low), float(high)
