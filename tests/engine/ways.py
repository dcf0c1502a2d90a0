"""Every way in which a tick can run.

The references, the references after recorded work, the kernels that are compiled for a CPU, the
Triton kernels in their interpreter, and a GPU where there is one.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import pytest
import torch

from engine import Engine, EngineConfig, SamplingParams
from kernels.backends.triton import TritonBackend

GPU = torch.cuda.is_available()
SMALL = {"hidden": 48, "layers": 2, "heads": 3, "kv_heads": 1, "ff": 56, "tied": True}
LARGE = {"hidden": 96, "layers": 2, "heads": 6, "kv_heads": 2, "ff": 72, "vocab": 48}
ROLES = ("small", "large")


@dataclass(frozen=True)
class Way:
    """How to run, and how much of it the time allows."""

    name: str
    config: dict
    prompts: int
    tokens: int

    @property
    def device(self):
        return "cuda" if self.name.startswith("cuda") else "cpu"

    @property
    def backends(self):
        """None is the engine's own choice."""
        return TritonBackend if self.name == "kernels" else None


def cuda(name, **config):
    marks = [pytest.mark.gpu, pytest.mark.skipif(not GPU, reason="needs an NVIDIA GPU")]
    return pytest.param(Way(name, config, 24, 48), id=name, marks=marks)


BY_OPS = {"cpu_kernels": False}
WAYS = [
    pytest.param(Way("reference", {"graphs": "off", **BY_OPS}, 12, 48), id="reference"),
    pytest.param(Way("recorded", {"graphs": "on", **BY_OPS}, 12, 48), id="recorded"),
    pytest.param(Way("compiled", {"graphs": "on"}, 12, 48), id="compiled"),
    cuda("cuda", graphs="off"),
    cuda("cuda, graphs", graphs="on"),
]
KERNELS = pytest.param(
    Way("kernels", {"graphs": "on"}, 2, 6),
    id="kernels",
    marks=pytest.mark.skipif(GPU, reason="the interpreter is chosen before kernels are imported"),
)


def build(kit, way, dtype="float32", **config):
    """An engine that runs so; memory that was never written holds NaN."""
    defaults = {"block_tokens": 4, "arena_tokens": 2048, "max_context": 128, "max_sequences": 32}
    small, large = kit.folders
    engine = Engine(
        "custom",
        small=small,
        large=large,
        dtype=dtype,
        device=way.device,
        config=EngineConfig(**{**defaults, **way.config, **config}),
        backends=way.backends,
    )
    for model, shape in enumerate(engine.shapes):
        engine.arena.rows(shape, model).fill_(math.nan)
    settle(way)
    return engine


def settle(way):
    """Until what was written here is there for the lanes' streams too."""
    if way.device == "cuda":
        torch.cuda.synchronize()


def schedule(position):
    return "large" if zlib.crc32(f"3/{position}".encode()) % 2 else "small"


SAMPLED = [
    {"temperature": 0.0},
    {"temperature": 0.9, "top_k": 5},
    {"temperature": 1.3, "top_p": 0.8, "logprobs": 2},
    {"temperature": 0.0, "repetition_penalty": 1.4, "presence_penalty": 0.5},
    {"temperature": 1.0, "frequency_penalty": 0.7, "logit_bias": {3: 2.0}, "min_tokens": 4},
]


def written(engine, batch, tokens, role="small"):
    ids = [
        engine.submit(p, SamplingParams(max_tokens=tokens, seed=i, **SAMPLED[i % 5]), role)
        for i, p in enumerate(batch)
    ]
    done = {}
    while len(done) < len(ids):
        done |= {c.request_id: c for c in engine.step()}
    return [(done[i].token_ids, done[i].logprobs) for i in ids]
