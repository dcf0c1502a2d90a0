"""Simulations of the tests, small enough to be worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bench.simulation.cards import KV_BYTES
from bench.simulation.run import Simulation
from bench.simulation.setting import BLOCK_TOKENS, Case, Setting
from bench.simulation.ticktimes import TickTimes
from bench.simulation.workload import Means, Workload
from engine.config import EngineConfig
from engine.config.pairs import Pair
from engine.device.kv_arena import ArenaGeometry

SHAPES = Pair.named("qwen-1.5b/qwen-32b").shapes
ALIKE = Means(prompt=10, answer=5, step=1000, spread=0)


def simulate(
    times: TickTimes,
    case: Case,
    means: Means = ALIKE,
    requests: int = 1,
    slabs: int = 1000,
    **changes: Any,
) -> dict[str, Any]:
    geometry = ArenaGeometry.of(SHAPES, EngineConfig(block_tokens=BLOCK_TOKENS), KV_BYTES)
    setting = Setting(SHAPES, replace(geometry, slabs=slabs), times)
    workload = Workload(requests, means, 1, setting.most)
    return Simulation(replace(setting, **changes), workload, case).run()


def closed(handoff: float, concurrency: int = 1) -> Case:
    return Case("latency", handoff, concurrency=concurrency)
