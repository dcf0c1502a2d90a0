"""Random requests, aborts and handoffs for as long as one likes: books hold, memory stays flat.

``STEER_SOAK_MINUTES`` says how long on each device; the default is a few seconds.
"""

from __future__ import annotations

import os

import pytest
import torch

from bench.gpu_quick.soak import Soak
from engine import Engine, EngineConfig

GPU = torch.cuda.is_available()
SECONDS = 60 * float(os.environ.get("STEER_SOAK_MINUTES", "0.05"))
SMALL = {"hidden": 48, "layers": 2, "heads": 3, "kv_heads": 1, "ff": 56, "tied": True}
LARGE = {"hidden": 96, "layers": 2, "heads": 6, "kv_heads": 2, "ff": 72, "vocab": 48}
ON_GPU = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not GPU, reason="needs an NVIDIA GPU")]
)


@pytest.mark.parametrize("device", ["cpu", ON_GPU])
def test_soak(device, make_pair, tmp_path, delimiters):
    kit = make_pair(tmp_path, SMALL, LARGE, seed=6)
    config = EngineConfig(
        delimiters=delimiters,
        block_tokens=4,
        arena_tokens=512,
        eager_admission=True,
        max_context=96,
        max_sequences=24,
        max_tick_tokens=48,
        check_every=1,
        graphs="on",
    )
    small, large = kit.folders
    engine = Engine("custom", small=small, large=large, config=config, device=device)
    soak = Soak(engine, device, ids=38, seconds=SECONDS)
    assert soak.run() == [] and soak.compared
