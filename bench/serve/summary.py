"""From records to one row: percentiles, throughput, goodput."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

from bench.serve.records import OK, SLOW, VANISHED, Record
from engine.errors import SteerError

_MEASURES: Mapping[str, Callable[[Record], float | None]] = {
    "ttft": lambda record: record.ttft,
    "tpot": lambda record: record.tpot,
    "e2e": lambda record: record.e2e,
}


@dataclass(frozen=True)
class Slo:
    """Service-level objectives: most seconds of ttft, tpot and e2e; empty: none were asked for."""

    most: Mapping[str, float]

    @classmethod
    def parse(cls, text: str) -> Slo:
        """From ``ttft=0.2,tpot=0.05``. SteerError on anything else."""
        most: dict[str, float] = {}
        for part in filter(None, text.split(",")):
            name, _, value = part.partition("=")
            try:
                most[name.strip()] = seconds = float(value)
            except ValueError:
                seconds = 0.0
            if name.strip() not in _MEASURES or not 0 < seconds < 1e6:
                known = ", ".join(_MEASURES)
                raise SteerError(
                    f"--slo: expected seconds by name, as in ttft=0.2,tpot=0.05 ({known}), "
                    f"got {part!r}"
                )
        return cls(most)

    def met(self, record: Record) -> bool:
        """Whether a request was answered within all of them. An answer of one piece has no tpot,
        and meets it."""
        if record.outcome != OK:
            return False
        values = {name: _MEASURES[name](record) for name in self.most}
        return all(value is None or value <= self.most[name] for name, value in values.items())


@dataclass(frozen=True)
class Window:
    """The counted time, between two moments of the monotonic clock."""

    begin: float
    end: float

    @property
    def seconds(self) -> float:
        """Its length; never 0."""
        return max(self.end - self.begin, 1e-9)

    def holds(self, moment: float) -> bool:
        """Whether a moment is in it."""
        return self.begin <= moment <= self.end

    @classmethod
    def of(
        cls, records: Sequence[Record], uncounted: int, timed: tuple[float, float] | None
    ) -> Window:
        """Of a timed load, its time. Else from the first counted request's beginning to the last
        one's end.

        uncounted: requests of the warm-up are those of lower numbers.
        """
        if timed:
            return cls(*timed)
        counted = [r for r in records if r.index >= uncounted] or list(records)
        return cls(min(r.due for r in counted), max(r.end for r in counted))


def spread(values: Iterable[float]) -> dict[str, float] | None:
    """The 50th, 90th and 99th percentile, interpolated, the mean and the largest; None of none."""
    known = sorted(values)
    if not known:
        return None
    cuts = quantiles(known, n=100, method="inclusive") if len(known) > 1 else known * 99
    return {
        "p50": cuts[49],
        "p90": cuts[89],
        "p99": cuts[98],
        "mean": sum(known) / len(known),
        "max": known[-1],
    }


def counted(records: Iterable[Record], window: Window, uncounted: int) -> list[Record]:
    """Those that began in the window, without the warm-up's."""
    return [r for r in records if r.index >= uncounted and window.holds(r.due)]


def summary(records: Sequence[Record], window: Window, uncounted: int, slo: Slo) -> dict[str, Any]:
    """The row's fields. Times are of answers that came whole; see ``bench.serve.command``.

    Tokens a second are all that arrived in the window, also of the warm-up's last answers and of
    clients that left.
    """
    asked = counted(records, window, uncounted)
    whole = [r for r in asked if r.outcome == OK]
    stayed = [r for r in asked if r.outcome not in (SLOW, VANISHED)]
    met = sum(map(slo.met, stayed))
    ended = [r for r in records if r.outcome in (OK, SLOW) and window.holds(r.end)]
    return {
        "requests": len(asked),
        "whole": len(whole),
        "warm_up": len(records) - len(asked),
        "outcomes": dict(Counter(r.outcome for r in asked).most_common()),
        "finish": dict(Counter(str(r.finish) for r in whole).most_common()),
        "measured": "/".join(sorted({r.measured for r in whole})),
        "seconds": window.seconds,
        "tokens_per_second": sum(tokens_within(r, window) for r in records) / window.seconds,
        "requests_per_second": len(ended) / window.seconds,
        "prompt_tokens": spread(r.prompt_tokens for r in whole if r.prompt_tokens is not None),
        "output_tokens": spread(r.tokens for r in whole),
        "ttft": spread(r.ttft for r in whole if r.ttft is not None),
        "between_tokens": spread(gap for r in whole for gap in r.intervals()),
        "tpot": spread(r.tpot for r in whole if r.tpot is not None),
        "e2e": spread(r.e2e for r in whole),
        "late": spread(r.sent - r.due for r in asked),
        "slo": dict(slo.most) or None,
        "goodput_share": met / len(stayed) if slo.most and stayed else None,
        "goodput_per_second": sum(map(slo.met, ended)) / window.seconds if slo.most else None,
    }


def tokens_within(record: Record, window: Window) -> float:
    """Tokens that arrived in the window; where pieces were counted, each stands for as many tokens
    as the answer had for a chunk on average."""
    each = record.tokens / sum(record.counts) if record.counts else 0.0
    pieces = zip(record.arrivals, record.counts, strict=True)
    return each * sum(new for at, new in pieces if window.holds(at))
