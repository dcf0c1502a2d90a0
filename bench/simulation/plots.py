"""A picture of a grid: latency against throughput, and the arena's owners over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

_MARKERS = "osD^vP*X"
_LINES = ("-", "--", ":", "-.")


def grid_plot(
    rows: Sequence[dict[str, Any]],
    history: Sequence[tuple[float, int, int]],
    path: Path,
    title: str,
) -> None:
    """Write both panels.

    Args:
        rows: result rows of the grid, in its order.
        history: (seconds, slabs of the small model, of the large one) of the last row.
        path: the picture; its ending gives the format.
        title: above both.
    """
    from matplotlib.figure import Figure  # without pyplot, which would pick a display for all

    figure = Figure(figsize=(13, 5))
    left, right = figure.subplots(1, 2)
    _latency_panel(left, rows)
    _arena_panel(right, history, rows[-1]["slabs"])
    right.set_title(f"the last combination: {_name(rows[-1])}, {_load(rows[-1])}")
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def _name(row: dict[str, Any]) -> str:
    return f"{row['lanes']}, handoff {row['handoff']:g}"


def _load(row: dict[str, Any]) -> str:
    return f"{row['rate']:g}/s" if row["rate"] else str(row["concurrency"])


def _latency_panel(axis: Any, rows: Sequence[dict[str, Any]]) -> None:
    """A line for each lane policy and share of handoffs; a point for each load."""
    lanes = list(dict.fromkeys(r["lanes"] for r in rows))
    shares = list(dict.fromkeys(r["handoff"] for r in rows))
    for name in dict.fromkeys(map(_name, rows)):
        line = [r for r in rows if _name(r) == name and r["latency_p50"] is not None]
        if not line:
            continue
        style, colour = lanes.index(line[0]["lanes"]), shares.index(line[0]["handoff"])
        points = [(r["tokens_per_second"], r["latency_p50"]) for r in line]
        axis.plot(
            *zip(*points, strict=True),
            label=name,
            color=f"C{colour % 10}",
            linestyle=_LINES[style % len(_LINES)],
            marker=_MARKERS[style % len(_MARKERS)],
        )
        for row, point in zip(line, points, strict=True):
            axis.annotate(_load(row), point, textcoords="offset points", xytext=(5, 4), fontsize=8)
    axis.set(
        xlabel="tokens a second, all requests (simulated)",
        ylabel="seconds from arrival to end, median (simulated)",
        xscale="log",
        yscale="log",
    )
    axis.grid(alpha=0.3)
    if axis.lines:
        axis.legend(fontsize=8)


def _arena_panel(axis: Any, history: Sequence[tuple[float, int, int]], slabs: int) -> None:
    times, small, large = zip(*history, strict=True)
    free = [slabs - sum(owned) for _, *owned in history]
    axis.stackplot(
        times,
        small,
        large,
        free,
        labels=("small", "large", "none"),
        step="post",
        colors=("C0", "C1", "0.9"),
    )
    axis.set(
        xlabel="seconds (simulated)",
        ylabel="slabs of the arena, by owner",
        xlim=(times[0], max(times[-1], 1e-9)),
        ylim=(0, slabs),
    )
    axis.legend(loc="upper right", fontsize=8)
