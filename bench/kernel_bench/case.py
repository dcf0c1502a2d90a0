"""A case for a GPU, and helpers to make its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kernels.aot.roofline import Roofline

DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Case:
    """One kernel at one shape.

    roofline: its bytes are also taken for those of one set of arguments.
    inputs: makes one set of arguments on the GPU; called again for every further set. The kernel
        must touch nearly all of a set: a mostly unused one would wrongly count as cold.
    kernel: ours, on such arguments.
    baseline: the same in plain torch; torch.compile compiles it, too.
    rows: tokens in the batch. context: keys of each, where that matters.
    scratch: bytes that the baseline allocates on the way, roughly.
    note: how the baseline's work differs from our kernel's.
    parts: functions that are also timed on the same arguments, by name: a part of the work alone,
        and a description of it.
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


@dataclass(frozen=True)
class CaseMaker:
    """At which sizes cases are made, and where their tensors are.

    device: of all tensors. draws_on: the device that draws random numbers, if it is another one;
        those of a CPU are the same on every machine.
    contexts: keys of each sequence of a decode.
    short: (queries, keys) of short spans.
    prefills: (queries, keys) of a chunk: over itself, and over a prefix as well.
    many: rows whose logits leave the L2 cache: there bandwidth is all that counts.
    copied_layers: of a copied block.
    """

    device: str = "cuda"
    draws_on: str = ""
    contexts: tuple[int, ...] = (1024, 4096, 16384)
    short: tuple[tuple[int, int], ...] = ((32, 4096), (64, 16384))
    prefills: tuple[tuple[int, int], ...] = ((1024, 1024), (1024, 5120))
    many: tuple[int, ...] = (256, 1024)
    copied_layers: int = 32

    def random(self, *shape: int, dtype: torch.dtype = DTYPE) -> Tensor:
        """Normal numbers."""
        drawn = torch.randn(shape, device=self.draws_on or self.device, dtype=dtype)
        return drawn.to(self.device)

    def zeros(self, *shape: int) -> Tensor:
        """Zeros, of the same type."""
        return torch.zeros(shape, device=self.device, dtype=DTYPE)

    def shuffled(self, count: int) -> Tensor:
        """0..count-1 in random order, int32."""
        drawn = torch.randperm(count, device=self.draws_on or self.device)
        return drawn.int().to(self.device)
