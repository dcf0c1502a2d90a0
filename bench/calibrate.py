"""Fits STEER's mixture on calibration problems and picks tau there, never on the test set."""

from __future__ import annotations

from dataclasses import replace

from tqdm import tqdm

from bench.evaluate import TestSet, evaluate
from engine import Calibration, Engine, SamplingParams, Steer
from engine.routing.policies import Call
from engine.routing.windows import Window

SIGNAL = "max_prob"
TAUS = (0.5, 0.7, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)  # 0.5 is the Bayes split
MAX_LOSS = 0.005


def fit(
    engine: Engine, tests: TestSet, signal: str = SIGNAL, window: str = "boundary"
) -> Calibration:
    """The mixture of ``signal`` over the boundaries of the small model's own traces. No labels."""
    read_all = Call(lambda boundary: "small", name="small, reading", window=Window.parse(window))
    params = SamplingParams(max_tokens=tests.max_tokens)
    completions = engine.generate([p.prompt for p in tests.problems], params, read_all)
    signals = [s.signals for c in completions for s in c.steps if s.signals is not None]
    return Calibration.fit(engine.fingerprint, signal, signals, window=window)


def choose_tau(
    engine: Engine,
    calibration: Calibration,
    tests: TestSet,
    max_loss: float = MAX_LOSS,
    progress: bool = False,
) -> Calibration:
    """The cheapest tau of a grid that loses at most ``max_loss`` accuracy to the large model.

    Uses the answers of the calibration problems. The highest tau stands where none is good enough.
    """
    aim = evaluate(engine, engine.policy("large"), tests).accuracy - max_loss
    grid = []
    for tau in tqdm(TAUS, "choosing tau", disable=not progress, leave=False):
        found = evaluate(engine, Steer(calibration, tau), tests)
        grid.append({"tau": tau, "accuracy": found.accuracy, "large": found.large_step_share})
        if found.accuracy >= aim:
            break
    provenance = {
        **calibration.provenance,
        "problems": len(tests.problems),
        "aim": f"lose at most {max_loss:.3f} accuracy to the large model on these problems",
        "aim_reached": found.accuracy >= aim,
        "grid": grid,
    }
    return replace(calibration, tau=tau, provenance=provenance)


def calibrate(
    engine: Engine, tests: TestSet, progress: bool = False, window: str = "boundary"
) -> Calibration:
    """Fit, then choose tau."""
    return choose_tau(engine, fit(engine, tests, window=window), tests, progress=progress)
