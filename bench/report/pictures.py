"""Frontiers of a domain by FLOPs, time and money, and its calibration."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import numpy as np

from bench.report.frontier import hull
from bench.report.measure import Measured
from bench.report.point import counted
from engine.tuning.pictures import histogram, reliability_plot

_MARKERS = "osD^vPX<>*hd"


def frontier_plot(measured: Measured, path: Path) -> None:
    """Accuracy against costs: every setting as a mark, each family's hull as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(14, 12), sharey=True)
    families = dict.fromkeys(p.family for p in measured.points)
    ends = measured.of("small") + measured.of("large")
    for axis, (accounting, title) in zip(axes.flat, counted(measured.prices).items(), strict=True):
        for family, marker in zip(families, cycle(_MARKERS)):
            points = measured.of(family)
            colour = axis.scatter(
                [p.cost(measured.large, accounting) for p in points],
                [p.accuracy for p in points],
                marker=marker,
                s=36,
                label=family,
                alpha=0.8,
            ).get_facecolor()
            both = [*points, *ends]
            line = hull(
                np.array([p.cost(measured.large, accounting) for p in both]),
                np.array([p.accuracy for p in both]),
            )
            wide = 2.2 if family.startswith("steer") else 0.9
            axis.plot(*line, color=colour[0], linewidth=wide, alpha=0.7)
        axis.set(xlabel=f"{title}, relative to large alone", xlim=(0, 1.2))
        axis.grid(alpha=0.3)
    for line in axes:
        line[0].set_ylabel("accuracy")
    axes[0][1].legend(loc="lower right", fontsize=8)
    figure.suptitle(f"{measured.name}, {measured.problems} problems")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw(measured: Measured, folder: Path) -> None:
    """All pictures of a domain."""
    frontier_plot(measured, folder / f"{measured.name}-frontier.png")
    histogram(measured.calibration, measured.samples, folder / f"{measured.name}-histogram.png")
    path = folder / f"{measured.name}-reliability.png"
    reliability_plot(measured.calibration, measured.samples, measured.right, path)
