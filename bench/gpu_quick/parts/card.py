"""Part 1: the card's measured limits, and the versions of its software."""

from __future__ import annotations

import subprocess
from dataclasses import asdict
from importlib import metadata
from typing import Any

import torch

from bench.gpu_quick.scene import Scene
from bench.kernel_bench.card import calibrate


def run(scene: Scene) -> None:
    """One row: bandwidths, a product, an empty graph node, memory and versions."""
    free, total = torch.cuda.mem_get_info()
    card = calibrate(scene.quick)
    with scene.writer() as writer:
        writer.write(
            {
                "bench": "card",
                **asdict(card),
                "free_bytes": free,
                "total_bytes": total,
                **_versions(),
            }
        )
    print(card)


def _versions() -> dict[str, Any]:
    """Versions that rows do not have anyway."""
    try:
        transformers = metadata.version("transformers")
    except metadata.PackageNotFoundError:
        transformers = "not installed"
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    return {
        "transformers": transformers,
        "cuda": torch.version.cuda,
        "driver": _driver(),
        "capability": capability,
    }


def _driver() -> str:
    query = ["nvidia-smi", "-i", "0", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=True, timeout=3)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()
