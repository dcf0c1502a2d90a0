"""A made-up pair on a CPU and made-up tick times, for the tests of lanes."""

from __future__ import annotations

from bench.lanes.device import Bandwidth, Device
from bench.lanes.options import Setup
from bench.lanes.pairs import dummy_pair
from engine import EngineConfig

CPU = Device("cpu")
CONFIG = EngineConfig(
    block_tokens=64, arena_tokens=4096, prefix_cache=False, max_tick_tokens=512, load_format="dummy"
)
SETUP = Setup(dummy_pair("dummy-tiny", 1), CONFIG, "float32", CPU, Bandwidth(1e9, 1e9), "a test")


class ByModel:
    """The small model takes 1 s a tick, the large one 20; a row beyond the first 10 ms."""

    def seconds(self, model: int, batch: float, context: float, span: float) -> float:
        return (1.0, 20.0)[model] + 0.01 * (span - 1)
