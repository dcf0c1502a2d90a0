"""One decode row of each model: does a model of full size run at all, and about how fast?"""

from __future__ import annotations

from bench import decode
from bench.gpu_quick.parts.decode import CONTEXT
from bench.gpu_quick.scene import Scene


def run(scene: Scene) -> None:
    """Times the decode of one sequence at one context."""
    context = "64" if scene.quick else CONTEXT
    flags = ["--batch", "1", "--context", context, "--no-peers", "--repeats", "20"]
    decode.run(scene.bench_flags(*flags), scene.shared)
