"""The measurements as rows: settings, paired differences, signals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from bench.report.frontier import Difference, Frontiers, difference
from bench.report.measure import Measured
from bench.report.point import Point, counted
from bench.stats import paired_difference, wilson
from engine.accounting.pricing import ACCOUNTINGS

OURS = ("steer", "steer-cost")


def point_rows(measured: Measured) -> Iterator[dict[str, Any]]:
    """A row for each setting of each policy."""
    for point in measured.points:
        low, high = wilson(int(point.correct.sum()), point.correct.size)
        yield {
            "kind": "setting",
            "domain": measured.name,
            "policy": point.family,
            "parameter": point.parameter,
            "chosen": point.chosen,
            "composed": point.composed,
            "n": point.correct.size,
            "accuracy": point.accuracy,
            "ci_low": low,
            "ci_high": high,
            "large_step_share": point.large_step_share,
            "large_token_share": point.large_token_share,
            "recomputed_share": point.recomputed_share,
            **_costs(point, measured.large),
            "prices": measured.prices,
            "seconds": round(point.seconds, 3),
            **point.extra,
        }


def signal_rows(measured: Measured) -> Iterator[dict[str, Any]]:
    """A row for each signal over each window."""
    for signal in measured.signals:
        chosen = (signal.signal, signal.window) == (
            measured.calibration.signal,
            measured.calibration.window,
        )
        yield {"kind": "signal", "domain": measured.name, "chosen": chosen, **signal.row()}


def paired_rows(measured: Measured) -> Iterator[dict[str, Any]]:
    """STEER at its tau against others at theirs, on the same problems."""
    steer = measured.steer
    for other in (measured.of("small") + measured.of("large") + measured.of("oracle")) + [
        p for p in measured.points if p.chosen and p.family != "steer"
    ]:
        bools = [[bool(c) for c in p.correct] for p in (steer, other)]
        value, low, high = paired_difference(bools[0], bools[1])
        yield {
            "kind": "paired",
            "domain": measured.name,
            "first": steer.label,
            "second": other.label,
            "n": steer.correct.size,
            **_interval(Difference(value, low, high)),
            "interval": "Newcombe",
            **_costs(steer, other),
        }


def _costs(first: Point, second: Point) -> dict[str, float]:
    """All costs of one point over those of another, by field."""
    return {
        f"flops_{name}" if name in ACCOUNTINGS else name: first.cost(second, name)
        for name in first.costs
    }


def frontier_rows(measured: Measured) -> Iterator[dict[str, Any]]:
    """Both of our policies against each family, at equal cost and at equal accuracy.

    Costs: that of STEER at its tau, and half way from the small model's to it. Accuracies: that of
    STEER, and half way from the small model's to it.
    """
    small, steer = measured.of("small")[0], measured.steer
    families = [f for f in dict.fromkeys(p.family for p in measured.points) if f not in _ALONE]
    for accounting in counted(measured.prices):
        fronts = Frontiers(measured.points, accounting)
        cost = [p.cost(measured.large, accounting) for p in (small, steer)]
        for name, at in (("steer's", cost[1]), ("half of steer's", sum(cost) / 2)):
            values = {f: fronts.accuracy_at(f, at) for f in families}
            yield from _against(measured, accounting, f"{name} cost", at, values)
        accuracies = small.accuracy, steer.accuracy
        for name, at in (("steer's", accuracies[1]), ("half of steer's", sum(accuracies) / 2)):
            values = {f: fronts.cost_at(f, at) for f in families}
            yield from _against(measured, accounting, f"{name} accuracy", at, values)
        values = {f: fronts.mean_accuracy(f, *cost) for f in families}
        yield from _against(measured, accounting, "mean up to steer's cost", cost[1], values)


_ALONE = ("small", "large")


def _against(
    measured: Measured, accounting: str, where: str, at: float, values: dict[str, np.ndarray]
) -> Iterator[dict[str, Any]]:
    for first in OURS:
        for second in values:
            if first != second and (second not in OURS or first == "steer-cost"):
                yield {
                    "kind": "frontier",
                    "domain": measured.name,
                    "accounting": accounting,
                    "equal": where,
                    "at": at,
                    "first": first,
                    "second": second,
                    "first_value": float(values[first][0]),
                    "second_value": float(values[second][0]),
                    **_interval(difference(values[first], values[second])),
                    "interval": "bootstrap over problems",
                }


def _interval(difference: Difference) -> dict[str, Any]:
    return {"difference": difference.value, "low": difference.low, "high": difference.high}


def time_rows(measured: Measured) -> Iterator[dict[str, Any]]:
    """Seconds by part of the work."""
    for part, seconds in measured.seconds.items():
        row = {"kind": "time", "domain": measured.name, "part": part}
        yield {**row, "seconds": round(seconds, 3)}


def all_rows(measured: Measured) -> list[dict[str, Any]]:
    """All rows of one domain."""
    makers = point_rows, signal_rows, paired_rows, frontier_rows, time_rows
    return [*(row for maker in makers for row in maker(measured)), *measured.audits]
