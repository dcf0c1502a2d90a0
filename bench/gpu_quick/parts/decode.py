"""Part 4: each model alone, at three sizes of batch and one context."""

from __future__ import annotations

from bench import decode
from bench.gpu_quick.scene import Scene

BATCHES = ("1", "8", "64")
CONTEXT = "384"  # at 512 the arena of a card of 80 GB admits fewer than 64 at once
REPEATS = "30"


def run(scene: Scene) -> None:
    """Times decodes planned ahead and in turn; the engine only, without peers."""
    batches = ",".join(scene.pieces(*BATCHES))
    flags = ["--batch", batches, "--context", CONTEXT, "--no-peers", "--repeats", REPEATS]
    if scene.quick:
        flags = ["--batch", "1,2", "--context", "64", "--no-peers"]
    decode.run(scene.bench_flags(*flags), scene.shared)
