"""Part 7: random requests, aborts and handoffs for as long as the budget allows."""

from __future__ import annotations

from dataclasses import replace

from bench.gpu_quick.scene import PartFailedError, Scene
from bench.gpu_quick.soak import Soak
from bench.lanes.pairs import dummy_pair
from engine import Engine, EngineConfig

_MARGIN = 15.0  # seconds to begin and to end; the part's least limit leaves 60 more
_QUICK = 0.5  # seconds
_PAIR = "dummy-tiny"  # many ticks per second through all of the engine
_STEP = 6


def run(scene: Scene) -> None:
    """One row; fails if anything is wrong at the end."""
    config = EngineConfig(
        block_tokens=4,
        arena_tokens=512,
        max_context=96,
        max_sequences=24,
        max_tick_tokens=48,
        check_every=1,
        graphs="on",
        load_format="dummy",
        plan_ahead="both",
    )
    if scene.quick:
        config = replace(config, arena_tokens=128, max_sequences=4, graph_rows=0)
    engine = Engine(dummy_pair(_PAIR, 1 if scene.quick else None), config=config, device="cuda")
    seconds = _QUICK if scene.quick else max(1.0, scene.seconds - _MARGIN)
    soak = Soak(engine, "cuda", 256, seconds, step=_STEP, most=seconds + _MARGIN / 3)
    if scene.quick:
        soak = replace(soak, calm=3, at_once=5, least=2)
    wrong = soak.run()
    ticks = engine.scheduler.counters()["ticks"]
    with scene.writer() as writer:
        writer.write(
            {
                "bench": "soak",
                "pair": _PAIR,
                "seconds": seconds,
                "ended": soak.ended,
                "ticks": ticks,
                "memory_compared": soak.compared,
                "wrong": wrong,
            }
        )
    if wrong:
        raise PartFailedError("\n".join(wrong))
