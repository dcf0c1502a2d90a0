"""Accuracy against FLOPs, a panel for each way of counting."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from engine.errors import SteerError

_MARKERS = "osD^vP*X"
_PANELS = {
    "flops_decode": "decode only (sampled and discarded rows)",
    "flops_catchup": "with catch-up (what this engine does)",
    "flops_reprefill": "with full re-prefill (stateless servers)",
}


def accuracy_plot(rows: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Write a picture of result rows. SteerError without matplotlib or for an unknown format."""
    try:
        import matplotlib
    except ImportError:
        raise SteerError("--plot needs matplotlib: pip install steer-engine[plot]") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(_PANELS), figsize=(14, 4.6), sharey=True)
    for axis, (field, label) in zip(axes, _PANELS.items(), strict=True):
        for row, marker in zip(rows, cycle(_MARKERS)):
            accuracy = row["accuracy"]
            error = [[accuracy - row["ci_low"]], [row["ci_high"] - accuracy]]
            axis.errorbar(
                row[field], accuracy, yerr=error, label=row["policy"], fmt=marker, capsize=3,
                markersize=8, alpha=0.8,
            )  # fmt: skip
        axis.set(xlabel=f"FLOPs relative to large alone\n{label}", xlim=(0, None))
        axis.axvline(1, color="grey", linewidth=0.5)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy, 95% interval")
    axes[0].legend(loc="center right")
    figure.suptitle(title)
    figure.tight_layout()
    try:
        figure.savefig(path, dpi=120)
    except ValueError as error:
        raise SteerError(f"--plot {path}: {error}") from None
    finally:
        plt.close(figure)
