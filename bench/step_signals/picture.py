"""AUROC with its interval for each score, as dots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.step_signals.rows import by_area
from engine.tuning.ranking import CHANCE

# Okabe and Ito's colours, which colour-blind people can tell apart; a marker says the same.
_FAMILIES = {
    "boundary": ("#0072B2", "o"),
    "step": ("#E69F00", "s"),
    "probe": ("#009E73", "^"),
    "whole": ("#CC79A7", "D"),
    "read": ("#000000", "*"),
}
_LABELS = {
    "boundary": "the step's first token",
    "step": "the step before",
    "probe": "first tokens of the step",
    "whole": "all tokens of the step",
    "read": "the large model's reading",
}


def areas_plot(rows: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Write a picture of the rows of scores that have an AUROC, the best on top."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    known = [row for row in by_area(rows) if row["auroc"] is not None][::-1]
    figure, axis = plt.subplots(figsize=(8, 1.5 + 0.19 * len(known)))
    for family, (colour, marker) in _FAMILIES.items():
        of = [(i, row) for i, row in enumerate(known) if row["window"].partition(":")[0] == family]
        areas = [row["auroc"] for _, row in of]
        low = [max(0.0, row["auroc"] - row["auroc_low"]) for _, row in of]
        high = [max(0.0, row["auroc_high"] - row["auroc"]) for _, row in of]
        axis.errorbar(
            areas,
            [i for i, _ in of],
            xerr=[low, high],
            fmt=marker,
            color=colour,
            label=_LABELS[family],
            markersize=6,
            elinewidth=1,
            linestyle="none",
        )
    axis.axvline(CHANCE, color="grey", linewidth=0.8, linestyle="--")
    axis.set_yticks(
        range(len(known)), [f"{row['signal']} over {row['window']}" for row in known], fontsize=7
    )
    axis.set(xlabel="AUROC for wrong steps, 95% interval", ylim=(-1, len(known)))
    axis.grid(axis="x", alpha=0.3)
    axis.legend(loc="upper left", fontsize=8)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
