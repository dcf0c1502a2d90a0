"""The settings of simulations, and the scheduler for them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from bench.simulation.cards import GIB, KV_BYTES
from bench.simulation.ticktimes import TickTimes
from bench.simulation.workload import DELIMITERS, TOKEN_BYTES
from engine import _core
from engine.accounting.pricing import Price
from engine.config import LANE_POLICIES, EngineConfig, ModelConfig
from engine.device.kv_arena import ArenaGeometry
from engine.errors import SteerError

BLOCK_TOKENS = 64  # as on a GPU


@dataclass(frozen=True)
class Setting:
    """The settings that all simulations of a grid share.

    together: see :class:`bench.simulation.clock.SharedClock`.
    max_sequences, max_tick_tokens, gather, hold_ticks, eager_backlog, read_along: see
        :class:`engine.config.EngineConfig`.
    eager_admission: admit requests as soon as their prompt fits, to see what a forecast is worth.
    ticks: end a simulation after this many ticks of both lanes; 0: when all requests are finished.
    """

    shapes: tuple[ModelConfig, ModelConfig]
    geometry: ArenaGeometry
    times: TickTimes
    together: float = 1.0
    max_sequences: int = 256
    max_tick_tokens: int = 2048
    gather: int = EngineConfig.gather
    hold_ticks: int = EngineConfig.hold_ticks
    eager_backlog: int = EngineConfig.eager_backlog
    read_along: int = EngineConfig.read_along
    eager_admission: bool = False
    ticks: int = 0

    @property
    def most(self) -> int:
        """The most tokens of one sequence, by the context and by the arena's size."""
        room = self.geometry.slabs * min(self.geometry.slots) * BLOCK_TOKENS
        return min(room, *(shape.max_position for shape in self.shapes))


@dataclass(frozen=True)
class Case:
    """One combination: a closed loop of ``concurrency`` requests, or ``rate`` arrivals a second.

    handoff: share of boundaries that go to the large model; at 1 it writes alone.
    """

    lanes: str
    handoff: float
    concurrency: int | None = None
    rate: float | None = None


def arena_of(shapes: tuple[ModelConfig, ModelConfig], room: int) -> ArenaGeometry:
    """An arena of ``room`` bytes. SteerError if it holds no block."""
    geometry = ArenaGeometry.of(shapes, EngineConfig(block_tokens=BLOCK_TOKENS), KV_BYTES)
    slabs, least = room // geometry.slab_bytes, geometry.slab_bytes / GIB
    if slabs < 1:
        raise SteerError(
            f"--memory: {room / GIB:.3g} GiB holds no block; expected {least:.3g} or more"
        )
    return replace(geometry, slabs=slabs)


def arena_fields(geometry: ArenaGeometry) -> dict[str, Any]:
    """Fields of a row about the arena."""
    return {
        "memory_gib": geometry.slabs * geometry.slab_bytes / GIB,
        "slabs": geometry.slabs,
        "slots": list(geometry.slots),
        "block_tokens": BLOCK_TOKENS,
    }


def check_lanes(name: str) -> None:
    """SteerError unless the core has a lane policy of that name."""
    if name not in LANE_POLICIES:
        known = ", ".join(LANE_POLICIES)
        raise SteerError(f"--lanes: unknown lane policy {name!r}; known: {known}")


def check_fits(setting: Setting, prompt: float, answer: float) -> None:
    """SteerError if a request of this length could never run."""
    limit = min(shape.max_position for shape in setting.shapes)
    geometry, longest = setting.geometry, prompt + answer
    advice = "lower --prompt, --answer or --spread"
    if longest > limit:
        raise SteerError(f"a request of {longest:g} tokens, the context is {limit}: {advice}")
    if longest > setting.most:
        raise SteerError(
            f"a request of {longest:g} tokens, the arena of "
            f"{geometry.slabs * geometry.slab_bytes / 2**30:.2f} GiB holds {setting.most} of the "
            f"large model: raise --memory or {advice}"
        )


def build_scheduler(setting: Setting, case: Case, longest: int) -> _core.Scheduler:
    """The scheduler of a case; ``longest``: most tokens of prompt and answer together."""
    check_lanes(case.lanes)
    small, large = (Price.of(shape).row for shape in setting.shapes)
    return _core.Scheduler(
        slabs=setting.geometry.slabs,
        slots=setting.geometry.slots,
        block_tokens=BLOCK_TOKENS,
        max_context=max(2, longest),
        max_sequences=setting.max_sequences,
        max_tick_tokens=setting.max_tick_tokens,
        recompute_cost=(small, large),
        background=(setting.read_along, setting.eager_backlog),
        lane_policy=case.lanes,
        gather=setting.gather,
        hold_ticks=setting.hold_ticks,
        tick_cost=(small, large),
        eager_admission=setting.eager_admission,
        prefix_cache=False,  # all prompts hold the same token: they would share everything
        delimiters=DELIMITERS,
        token_bytes=TOKEN_BYTES,
    )
