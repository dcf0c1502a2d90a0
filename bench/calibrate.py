"""Fits STEER's calibration on calibration problems and picks tau there, never on the test set."""

from __future__ import annotations

from bench.evaluate import TestSet
from engine import Calibration, Engine, SamplingParams, SteerError
from engine.routing.windows import Window
from engine.tuning.fitting import fitted
from engine.tuning.samples import Sample, observe
from engine.tuning.separability import judge_windows, recommend, windows_for
from engine.tuning.step_mixtures import with_step_mixtures
from engine.tuning.target import Bench, Target, choose_tau

SIGNAL = "max_prob"
AUTO = "auto"  # the window that looks best without labels
AIM = Target("loss", 0.005)


def samples_of(engine: Engine, tests: TestSet, progress: bool = False) -> list[Sample]:
    """Answers of the small model alone."""
    params = SamplingParams(max_tokens=tests.max_tokens)
    return observe(engine, tests.prompts(engine), params, progress)


def fit(
    engine: Engine, tests: TestSet, samples: list[Sample], window: str = "boundary"
) -> Calibration:
    """The mixture over the boundaries of the small model's own answers; it needs no labels.

    The signal is ``max_prob``, or with the window ``auto`` the recommended one.
    """
    if window == AUTO:
        separability = recommend(judge_windows(samples, windows_for(samples)))
        if separability is None:
            raise SteerError("no signal over any window predicts the small model's doubt")
    else:
        (separability,) = judge_windows(samples, [Window.parse(window)], [SIGNAL])
    return fitted(engine, samples, separability, [p.prompt for p in tests.problems])


def step_mixtures(engine: Engine, tests: TestSet, calibration: Calibration) -> Calibration:
    """The calibration with what steer-served needs: mixtures by step, from a run of both models."""
    params = SamplingParams(max_tokens=tests.max_tokens)
    return with_step_mixtures(calibration, engine, tests.prompts(engine), params)


def calibrate(
    engine: Engine, tests: TestSet, progress: bool = False, window: str = "boundary"
) -> Calibration:
    """Fit, then choose tau with the answers of the calibration problems."""
    samples = samples_of(engine, tests, progress)
    calibration = fit(engine, tests, samples, window)
    bench = Bench(
        engine,
        tests.prompts(engine),
        SamplingParams(max_tokens=tests.max_tokens),
        lambda i, text: tests.is_correct(tests.problems[i], text),
    )
    return choose_tau(calibration, samples, AIM, bench)
