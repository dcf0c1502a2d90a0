"""The largest pair that the card's memory holds as the benches run it."""

from __future__ import annotations

from bench.lanes.options import COMMON, Options
from bench.lanes.pairs import SMALLER, dummy_pair
from engine.device.devices import choose_devices
from engine.device.memory_plan import MemoryPlan
from engine.errors import SteerError

DEFAULT = COMMON["pair"]["cuda"]


def fitting_pair() -> str | None:
    """The first pair that fits, of the default and the smaller ones; None if none does."""
    options = Options("gpu_quick", None, {})
    options.parse(["--device", "cuda"])
    room = MemoryPlan(choose_devices("cuda"), options.config(), element_bytes=2)
    for name in (DEFAULT, *SMALLER):
        try:
            room.check(dummy_pair(name).shapes)
        except SteerError:
            continue
        return name
    return None
