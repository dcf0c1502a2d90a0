"""An engine's own counts for Prometheus, read from its snapshot whenever they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

Snapshot = Mapping[str, Any]
_GAUGES = {
    "running": ("steer_requests_running", "Requests that run."),
    "waiting": ("steer_requests_waiting", "Requests that wait to run."),
    "reserved": ("steer_requests_reserved", "Places held for requests that are being read."),
    "open": ("steer_requests_open", "Requests whose answers have not ended."),
    "kv_usage": ("steer_kv_usage_ratio", "Share of the arena that requests use, 0 to 1."),
}


class EngineNumbers(Collector):
    """Gauges and counters of what ``snapshot()`` gives, as ``AsyncEngine.snapshot`` does."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def describe(self) -> list[Metric]:
        """Nothing: an engine is not asked before it serves."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All numbers of one snapshot."""
        now = self._snapshot()
        for key, (name, text) in _GAUGES.items():
            yield GaugeMetricFamily(name, text, value=now[key])
        text = "Requests that lost their KV to others and went back."
        yield CounterMetricFamily("steer_preemptions", text, value=now["preemptions"])
        ticks = CounterMetricFamily("steer_ticks", "Forward passes.", labels=["model"])
        for role, count in now["ticks"].items():
            ticks.add_metric([role], count)
        yield ticks
        rows = CounterMetricFamily("steer_rows", "Computed rows.", labels=["model", "kind"])
        for role, kinds in now["rows"].items():
            for kind, count in kinds.items():
                rows.add_metric([role, kind], count)
        yield rows
        yield from _arena(now)


def _arena(now: Snapshot) -> Iterator[Metric]:
    slabs = GaugeMetricFamily("steer_arena_slabs", "Slabs of memory by owner.", labels=["owner"])
    for owner, count in now["slabs"].items():
        slabs.add_metric([owner], count)
    yield slabs
    tokens = GaugeMetricFamily(
        "steer_arena_tokens", "Tokens with KV in the arena.", labels=["model", "state"]
    )
    for role, states in now["tokens"].items():
        for state, count in states.items():
            tokens.add_metric([role, state], count)
    yield tokens
    capacity = GaugeMetricFamily(
        "steer_arena_capacity_tokens", "Tokens that the arena can hold.", labels=["model"]
    )
    for role, count in now["capacity"].items():
        capacity.add_metric([role], count)
    yield capacity
