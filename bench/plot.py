"""Accuracy against FLOPs, time and money, a panel for each way of counting."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from bench.prices.fields import time_field
from engine.errors import SteerError
from engine.files import check_output

_FORMATS = (".png", ".svg", ".pdf")
_MARKERS = "osD^vP*X"
_FLOPS = {
    "flops_decode": "decode only (sampled and discarded rows)",
    "flops_catchup": "with catch-up (what this engine does)",
    "flops_reprefill": "with full re-prefill (stateless servers)",
}


def _panels(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The label of each field that has a panel: FLOPs, then time at the first and at the last load
    and money, where rows have them."""
    panels = {name: f"FLOPs relative to large alone\n{text}" for name, text in _FLOPS.items()}
    if prices := rows[0].get("prices"):
        where = prices["card"] or prices["tick_times"]
        for load in {prices["loads"][0]: None, prices["loads"][-1]: None}:
            text = f"time relative to large alone\n{where}, load {load} (modelled)"
            panels[time_field(load)] = text
        panels["money"] = "money relative to large alone\n(price of a token)"
    return panels


def check_plot(path: Path) -> None:
    """SteerError if :func:`accuracy_plot` could not write there; to be called before the work."""
    if importlib.util.find_spec("matplotlib") is None:
        raise SteerError("--plot needs matplotlib: pip install steer-engine[plot]")
    if path.suffix not in _FORMATS:
        raise SteerError(f"--plot {path}: expected a file name that ends in {', '.join(_FORMATS)}")
    check_output(path, "--plot")


def accuracy_plot(rows: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Write a picture of result rows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = _panels(rows)
    across = 3
    down = -(-len(panels) // across)
    figure, axes = plt.subplots(
        down, across, figsize=(14, 4.6 * down), sharey=True, layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (field, label) in zip(axes.flat, panels.items(), strict=False):
        for row, marker in zip(rows, cycle(_MARKERS)):
            accuracy = row["accuracy"]
            error = [[accuracy - row["ci_low"]], [row["ci_high"] - accuracy]]
            axis.errorbar(
                row[field],
                accuracy,
                yerr=error,
                label=row["policy"],
                fmt=marker,
                capsize=3,
                markersize=8,
                alpha=0.8,
            )
        axis.set(xlabel=label, xlim=(0, None))
        axis.axvline(1, color="grey", linewidth=0.5)
        axis.grid(alpha=0.3)
    for line in axes:
        line[0].set_ylabel("accuracy, 95% interval")
    axes[0][0].legend(loc="center right")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    plt.close(figure)
