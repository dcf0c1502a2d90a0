"""The main figures of a run, and their goals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Goal:
    """A figure of a row.

    where: fields of its row, and their values.
    of: reads the figure; None if a row has none.
    form: format of the figure.
    goal: the goal in words.
    """

    name: str
    where: Row
    of: Callable[[Row], float | None]
    form: str
    goal: str

    def measured(self, rows: Sequence[Row]) -> str:
        """The figure of the last such row that has one, "-" if nothing was measured."""
        for row in reversed(rows):
            if all(row.get(name) == value for name, value in self.where.items()):
                value = self.of(row)
                if value is not None:
                    return format(value, self.form)
        return "-"


def _field(name: str, scale: float = 1.0) -> Callable[[Row], float | None]:
    return lambda row: None if row.get(name) is None else scale * row[name]


def _idle(row: Row) -> float | None:
    return None if row.get("busy_share") is None else 1 - row["busy_share"]


def _decode(model: str) -> Row:
    return {"bench": "decode", "provider": "steer", "model": model, "batch": 1, "error": None}


def _handoff(quantise: str | None) -> Row:
    return {"bench": "handoff", "to": "large", "backlog": 100, "eager": 0, "quantise": quantise}


def _routed(share: float) -> Row:
    return {"bench": "pair", "kind": "run", "lanes": "latency", "concurrency": 1, "share": share}


def _kernel(op: str, kernel: str, model: str) -> Row:
    return {
        "kind": "gpu",
        "op": op,
        "kernel": kernel,
        "rows": 1,
        "provider": "steer",
        "model": model,
    }


# On an H100; where no unit is named, as shares of the card's measured copy bandwidth.
GOALS = (
    Goal("copy, TB/s", {}, _field("copy_bandwidth", 1e-12), ".2f", "measured"),
    Goal("read, TB/s", {}, _field("read_bandwidth", 1e-12), ".2f", "measured"),
    Goal("product, TFLOP/s", {}, _field("peak_flops", 1e-12), ".0f", "measured"),
    Goal("small model, decode of 1", _decode("small"), _field("of_copy"), ".1%", "58%, aim 69%"),
    Goal("large model, decode of 1", _decode("large"), _field("of_copy"), ".1%", "84%, aim 90%"),
    Goal("small model, GPU idle at most", _decode("small"), _idle, ".1%", "under 3%"),
    Goal("handoff of 100, in decodes", _handoff(None), _field("over_decode"), ".2f", "1.2"),
    Goal("the same, int4 large", _handoff("int4"), _field("over_decode"), ".2f", "-"),
    Goal("the same, fp8 large", _handoff("fp8"), _field("over_decode"), ".2f", "-"),
    Goal(
        "both lanes, 8 requests",
        {"bench": "overlap", "requests": 8},
        _field("of_copy"),
        ".1%",
        "80%, aim 90%",
    ),
    Goal("routed over its ideal, f=.1", _routed(0.1), _field("over_ideal"), ".3f", "1.05"),
    Goal("routed over its ideal, f=.2", _routed(0.2), _field("over_ideal"), ".3f", "1.05"),
    Goal("times large alone, f=.1", _routed(0.1), _field("speedup"), ".2f", "6.1"),
    Goal("times large alone, f=.2", _routed(0.2), _field("speedup"), ".2f", "3.9"),
    Goal("times large alone, f=.4", _routed(0.4), _field("speedup"), ".2f", "2.3"),
    Goal(
        "confidence [1, V], us",
        _kernel("confidence", "statistics", "qwen-1.5b"),
        _field("p50_us"),
        ".2f",
        "6, aim 4",
    ),
    Goal(
        "confidence and a draw, us",
        _kernel("confidence", "statistics_draw", "qwen-1.5b"),
        _field("p50_us"),
        ".2f",
        "6, aim 4",
    ),
    Goal(
        "LM head of 1, small, us",
        _kernel("lm_head", "statistics", "qwen-1.5b"),
        _field("p50_us"),
        ".1f",
        "aim 164",
    ),
    Goal(
        "LM head of 1, large, us",
        _kernel("lm_head", "statistics", "qwen-32b"),
        _field("p50_us"),
        ".1f",
        "aim 546",
    ),
)
