"""What a case for a GPU is, and the tensors that cases are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kernels.aot.roofline import Roofline

DTYPE = torch.bfloat16
DEVICE = "cuda"


@dataclass(frozen=True)
class Case:
    """One kernel at one shape.

    roofline: its bytes are also taken for those of one set of arguments.
    inputs: makes one set of arguments on the GPU; called again for every further set. The kernel
        touches nearly all of them: a set that is mostly idle would seem to be cold and not be.
    kernel: ours, on such arguments.
    baseline: the same in plain torch; it is also what torch.compile gets.
    rows: tokens in the batch. context: keys of each, where that matters.
    scratch: bytes that the baseline allocates on the way, roughly.
    note: what the baseline does otherwise than our kernel.
    parts: what else is timed on the same arguments, by name: a part of the work alone, and in
        words which.
    """

    op: str
    name: str
    rows: int
    roofline: Roofline
    inputs: Callable[[], tuple[Any, ...]]
    kernel: Callable[..., object]
    baseline: Callable[..., object]
    context: int = 0
    scratch: int = 0
    note: str = ""
    parts: Mapping[str, tuple[Callable[..., object], str]] = field(default_factory=dict)


def random(*shape: int, dtype: torch.dtype = DTYPE) -> Tensor:
    """Normal numbers."""
    return torch.randn(shape, device=DEVICE, dtype=dtype)


def zeros(*shape: int) -> Tensor:
    """Zeros, of the same type."""
    return torch.zeros(shape, device=DEVICE, dtype=DTYPE)


def shuffled(count: int) -> Tensor:
    """0..count-1 in random order, int32."""
    return torch.randperm(count, device=DEVICE).int()
