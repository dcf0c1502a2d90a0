"""Pictures of result rows: one line for each kind of row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_MARKERS = "osD^vP*X"
Row = dict[str, Any]


def line_plot(
    rows: Sequence[Row],
    path: Path,
    *,
    x: tuple[str, str],
    y: tuple[str, str],
    series: Callable[[Row], str],
    title: str,
    log: str = "",
) -> None:
    """Write a picture.

    Args:
        rows: those with a value in both fields are drawn.
        path: its ending gives the format.
        x, y: field of the row, and label.
        series: the name of a row's line.
        title: above all.
        log: the axes that are logarithmic: "x", "y", "xy" or none.
    """
    from matplotlib.figure import Figure  # without pyplot, which would pick a display for all

    figure = Figure(figsize=(9, 5.5))
    axis = figure.subplots()
    drawn = [r for r in rows if r.get(x[0]) is not None and r.get(y[0]) is not None]
    for index, name in enumerate(dict.fromkeys(map(series, drawn))):
        points = sorted((r[x[0]], r[y[0]]) for r in drawn if series(r) == name)
        marker = _MARKERS[index % len(_MARKERS)]
        axis.plot(*zip(*points, strict=True), label=name, marker=marker, alpha=0.8)
    axis.set(xlabel=x[1], ylabel=y[1])
    axis.set_xscale("log" if "x" in log else "linear")
    axis.set_yscale("log" if "y" in log else "linear")
    axis.grid(alpha=0.3)
    if drawn:
        axis.legend(fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
