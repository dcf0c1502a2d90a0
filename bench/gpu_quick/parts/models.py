"""Part 5: both models together. Pieces that share an engine come first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench import handoff, overlap, pair
from bench.gpu_quick.scene import Scene
from bench.lanes.shared import Shared

Bench = Callable[[Sequence[str] | None, Shared | None], int]
_HANDOFF = ("--context", "1024", "--eager", "0", "--repeats", "10")
# By name: a bench, its flags, and its flags at the smallest size.
PIECES: dict[str, tuple[Bench, tuple[str, ...], tuple[str, ...]]] = {
    "handoff": (
        handoff.run,
        ("--backlog", "16,100,512,4096", *_HANDOFF),
        ("--backlog", "16", "--context", "64", "--eager", "0"),
    ),
    "overlap": (overlap.run, ("--requests", "8", "--repeats", "30"), ("--requests", "2")),
    "pair": (
        pair.run,
        (
            "--share",
            "0.1,0.2,1",
            "--concurrency",
            "1,8",
            "--lanes",
            "latency,throughput",
            "--rounds",
            "1",
            "--repeats",
            "3",
            "--no-ablations",
            "--alone-once",
        ),
        ("--share", "0.4,1", "--concurrency", "1", "--lanes", "latency", "--no-ablations"),
    ),
    "int4": (
        handoff.run,
        ("--quantise", "int4", "--backlog", "100", *_HANDOFF),
        ("--quantise", "int4", "--backlog", "16", "--context", "64", "--eager", "0"),
    ),
    "fp8": (
        handoff.run,
        ("--quantise", "fp8", "--backlog", "100", *_HANDOFF),
        ("--quantise", "fp8", "--backlog", "16", "--context", "64", "--eager", "0"),
    ),
}


def run(scene: Scene) -> None:
    """Runs bench after bench, each with its table in the log."""
    for name in scene.pieces(*PIECES):
        bench, flags, smallest = PIECES[name]
        print(f"\n-- {name}", flush=True)
        bench(scene.bench_flags(*(smallest if scene.quick else flags)), scene.shared)
