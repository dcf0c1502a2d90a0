"""The one face of the kernels for callers: a backend for each device, and what it takes and gives.

A backend is chosen once per device and handed down; nothing above this module knows which one it
is. A GPU gets the Triton kernels. A CPU gets the compiled kernels, where a whole forward pass is
one call, and the references for all else. Triton is imported with the first GPU: a machine without
one needs none of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from kernels.attention_config import Splits, Work, split_attention_bytes
from kernels.backends.base import Backend
from kernels.backends.cpu import CpuBackend
from kernels.backends.reference import ReferenceBackend
from kernels.cpu import ForwardPass
from kernels.forks import torch_after_fork
from kernels.types.attention import AttentionPlan, KVLayout
from kernels.types.sampling import DrawRows, PenaltyRows
from kernels.types.statistics import Confidence, LogProbs
from kernels.types.weights import (
    WORKSPACE,
    Fp8Weight,
    IntWeight,
    PackedWeight,
    StackedWeight,
    Weight,
    stack,
    weight_tensors,
)

__all__ = [
    "WORKSPACE",
    "AttentionPlan",
    "Backend",
    "BackendChoice",
    "Confidence",
    "CpuBackend",
    "DrawRows",
    "ForwardPass",
    "Fp8Weight",
    "GpuLimits",
    "IntWeight",
    "KVLayout",
    "LogProbs",
    "PackedWeight",
    "PenaltyRows",
    "ReferenceBackend",
    "Splits",
    "StackedWeight",
    "Weight",
    "Work",
    "backend_for",
    "gpu_limits",
    "split_attention_bytes",
    "stack",
    "torch_after_fork",
    "weight_tensors",
]

BackendChoice = Callable[[torch.device], Backend]


def backend_for(device: torch.device) -> Backend:
    """The fastest that computes on a device. ValueError where none does."""
    if device.type == "cpu":
        return CpuBackend()
    if device.type != "cuda":
        raise ValueError(f"device must be a CPU or a CUDA device, got {device}")
    from kernels.backends.triton import TritonBackend

    return TritonBackend(device)


class GpuLimits(NamedTuple):
    """What the kernels for a GPU were built for."""

    block_tokens: tuple[int, ...]
    head_dims: tuple[int, ...]
    widest_group: int  # query heads that share a key head


def gpu_limits() -> GpuLimits:
    """Imports Triton, so it is for machines with a GPU."""
    from kernels.arena import PAGES
    from kernels.attention import HEAD_DIMS, WIDEST_GROUP

    return GpuLimits(PAGES, HEAD_DIMS, WIDEST_GROUP)
