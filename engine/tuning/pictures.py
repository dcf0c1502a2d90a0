"""Plots of a calibration: its mixture over the data, and its reliability."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.routing.calibration import Calibration
from engine.routing.signals import confidence_scale
from engine.routing.windows import Window
from engine.tuning.samples import Sample, doubt

_BINS = 10


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def _figure() -> tuple[Any, Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6.4, 4.4))
    return plt, figure, axis


def _finish(plt: Any, figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def histogram(calibration: Calibration, samples: Sequence[Sample], path: Path) -> None:
    """Write a picture of the signal at all boundaries, with the two components."""
    window = Window.parse(calibration.window)
    values = np.array(
        [
            confidence_scale(calibration.signal, seen)
            for sample in samples
            for step in range(len(sample.steps))
            if (seen := sample.seen(window, step)) is not None
        ]
    )
    plt, figure, axis = _figure()
    axis.hist(values, bins=60, density=True, color="0.8", label=f"{values.size} boundaries")
    grid = np.linspace(values.min(), values.max(), 400)
    mixture = calibration.mixture
    parts = zip(mixture.weights, mixture.means, mixture.deviations, ("unsure", "sure"), strict=True)
    for weight, mean, deviation, label in parts:
        scaled = (grid - mean) / deviation
        density = weight * np.exp(-0.5 * scaled**2) / (deviation * math.sqrt(2 * math.pi))
        axis.plot(grid, density, label=f"{label}, weight {weight:.2f}")
    scale = {"max_prob": "log-odds of max_prob", "entropy": "-log entropy"}
    axis.set(
        xlabel=f"{scale.get(calibration.signal, calibration.signal)} over {calibration.window}",
        ylabel="density",
        title=f"{calibration.pair}: components {mixture.separation:.1f} deviations apart",
    )
    axis.legend()
    _finish(plt, figure, path)


def reliability(
    calibration: Calibration, samples: Sequence[Sample], right: Sequence[bool] | None
) -> tuple[list[tuple[float, float, int]], str]:
    """(mean prediction, mean observation, count) of each bin, and a label for the observations.

    Args:
        right: for each sample whether its answer is right. With it, predictions are chances that
            the small model's whole answer is right, and observations whether it is. Without, they
            are chances for single steps, against the small model's own probability of its tokens.
    """
    window = Window.parse(calibration.window)
    predicted: list[float] = []
    observed: list[float] = []
    for index, sample in enumerate(samples):
        steps = [
            1 - calibration.error(seen) if seen else 1 - calibration.errors[1]
            for seen in (sample.seen(window, i) for i in range(len(sample.steps)))
        ]
        if right is None:
            predicted += steps
            observed += [1 - doubt(step) for step in sample.steps]
        else:
            predicted.append(math.prod(steps))
            observed.append(float(right[index]))
    what = "answers that are right" if right is not None else "the small model's own chance"
    return _binned(np.array(predicted), np.array(observed)), what


def _binned(predicted: Any, observed: Any) -> list[tuple[float, float, int]]:
    places = np.minimum((predicted * _BINS).astype(int), _BINS - 1)
    bins = [places == i for i in range(_BINS)]
    return [
        (float(predicted[b].mean()), float(observed[b].mean()), int(b.sum()))
        for b in bins
        if b.any()
    ]


def reliability_plot(
    calibration: Calibration, samples: Sequence[Sample], right: Sequence[bool] | None, path: Path
) -> None:
    """Write a picture of the points of :func:`reliability`, their size by their count."""
    points, what = reliability(calibration, samples, right)
    plt, figure, axis = _figure()
    x, y, counts = zip(*points, strict=True)
    axis.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    axis.scatter(x, y, s=20 + 200 * np.array(counts) / max(counts), alpha=0.7)
    unit = "answer" if right is not None else "step"
    axis.set(
        xlabel=f"predicted chance that the small model's {unit} is right",
        ylabel=what,
        title=f"{calibration.pair}: {calibration.signal} over {calibration.window}",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
    )
    _finish(plt, figure, path)
