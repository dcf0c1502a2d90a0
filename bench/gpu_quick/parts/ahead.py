"""Compiles kernels before they are needed, on all cores, into Triton's cache on disk.

The parts themselves are rehearsed: piece by piece in parallel processes, on models of one layer and
with few repeats. A rehearsal makes the same launches as the part, argument for argument, so
Triton's keys are the same. Variants that are compiled ahead of time would not do: a key holds what
is known of every argument (a constant, a multiple of 16, nothing), and hardly any of an engine's
launches has the key of a variant.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from bench.gpu_quick.output import EVENTS, Follower
from bench.gpu_quick.parts.decode import BATCHES
from bench.gpu_quick.parts.kernels import OPS
from bench.gpu_quick.parts.models import PIECES
from bench.gpu_quick.parts.parity import piece_names
from bench.gpu_quick.scene import Scene
from bench.gpu_quick.watch import WORKER
from kernels.aot import registry

_PAUSE = 0.05  # seconds
_MORE = 4  # rehearsals more than cores: some wait for the disk or the card


def pieces(key: str, quick: bool) -> Sequence[str]:
    """The pieces of a part that are rehearsed in parallel; "" is the whole part."""
    found: dict[str, Sequence[str]] = {
        "2": registry.OPS,
        "3": piece_names(quick),
        "row": ("",),
        "4": BATCHES,
        "5": tuple(PIECES),
        "6": OPS,
        "7": ("",),
    }
    return found.get(key, ())


def run(scene: Scene) -> None:
    """A row for each rehearsal, with the kernels that it compiled."""
    follower = Follower(scene.folder / EVENTS)
    waiting = [(key, piece) for key in scene.ahead_of for piece in pieces(key, scene.quick)]
    count = _rehearse(scene, waiting)
    told = [event for event in follower.new() if event.get("event") == "rehearsed"]
    with scene.writer() as writer:
        for event in told:
            writer.write({"bench": "compile", **event})
    print(f"{len(told)} of {count} rehearsals came to their end")


def _rehearse(scene: Scene, waiting: list[tuple[str, str]]) -> int:
    """Run all rehearsals, a few more at once than there are cores; returns their number."""
    count, running = len(waiting), list[subprocess.Popen[Any]]()
    while waiting or running:
        while waiting and len(running) < (os.cpu_count() or 1) + _MORE:
            running.append(_start(scene, *waiting.pop(0)))
        time.sleep(_PAUSE)
        running = [each for each in running if each.poll() is None]
    return count


def _start(scene: Scene, key: str, piece: str) -> subprocess.Popen[Any]:
    """Start a rehearsal in the group of this process, with which it is ended."""
    flags = ["--parts", key, "--only", piece, "--out", str(scene.folder), "--limits", "20"]
    # The pair is named, as memory held by the others would make it choose a smaller one.
    flags += ["--pair", scene.pair, *(["--quick"] if scene.quick else [])]
    # Compilation needs the cores: without this each process would add as many compute threads.
    return subprocess.Popen(
        [sys.executable, "-m", WORKER, *flags, "--rehearse"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
