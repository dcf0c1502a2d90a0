"""Inputs of checks: made on the host from a seed, so that every run has the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernels.variant import ModelShape

DTYPE = torch.bfloat16


@dataclass
class Maker:
    """Random tensors for one shape on one device. ``head_dtype``: of the LM head and its input."""

    shape: ModelShape
    device: torch.device
    head_dtype: torch.dtype = DTYPE
    seed: int = 0
    _random: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._random = torch.Generator("cpu").manual_seed(self.seed)

    def normal(self, *size: int, spread: float = 1.0, dtype: torch.dtype = DTYPE) -> Tensor:
        """Normal numbers."""
        made = torch.randn(size, generator=self._random)
        return (made * spread).to(dtype).to(self.device)

    def uniform(self, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """From 0.5 to 1.5."""
        return (torch.rand(size, generator=self._random) + 0.5).to(dtype).to(self.device)

    def whole(self, low: int, high: int, *size: int, dtype: torch.dtype = torch.int32) -> Tensor:
        """From ``low`` to below ``high``."""
        return torch.randint(low, high, size, generator=self._random).to(dtype).to(self.device)

    def shuffled(self, count: int) -> Tensor:
        """0 to below ``count`` in random order, int32."""
        return torch.randperm(count, generator=self._random).int().to(self.device)

    def integers(self, values: Sequence[int]) -> Tensor:
        """int32."""
        return torch.tensor(list(values), dtype=torch.int32).to(self.device)


def taken(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    """Those rows, in memory of their own."""
    index = torch.tensor(list(rows), dtype=torch.int64).to(tensor.device)
    return tensor.index_select(0, index)
