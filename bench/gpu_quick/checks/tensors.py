"""Inputs of checks: from a seed, so that every run on a kind of device has the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kernels.aot.variant import ModelShape
from kernels.ops import Backend

DTYPE = torch.bfloat16


@dataclass
class Maker:
    """Random tensors for one shape on one device.

    backend: the operations that are checked, on that device.
    head_dtype: for the LM head and its input.
    """

    shape: ModelShape
    device: torch.device
    backend: Backend
    head_dtype: torch.dtype = DTYPE
    seed: int = 0
    _random: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._random = torch.Generator(self.device).manual_seed(self.seed)

    def normal(self, *size: int, spread: float = 1.0, dtype: torch.dtype = DTYPE) -> Tensor:
        """Normally distributed numbers."""
        made = torch.empty(size, device=self.device)
        return made.normal_(0.0, spread, generator=self._random).to(dtype)

    def uniform(self, *size: int) -> Tensor:
        """Uniform fp32 from 0.5 to 1.5."""
        return torch.empty(size, device=self.device).uniform_(0.5, 1.5, generator=self._random)

    def whole(self, low: int, high: int, *size: int, dtype: torch.dtype = torch.int32) -> Tensor:
        """Whole numbers from ``low`` to below ``high``."""
        made = torch.empty(size, dtype=dtype, device=self.device)
        return made.random_(low, high, generator=self._random)

    def shuffled(self, count: int) -> Tensor:
        """0 to below ``count`` in random order, int32."""
        order = torch.Generator("cpu").manual_seed(count)
        return torch.randperm(count, generator=order).int().to(self.device)

    def integers(self, values: Sequence[int]) -> Tensor:
        """The values as int32."""
        return torch.tensor(list(values), dtype=torch.int32).to(self.device)


def taken(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    """A copy of these rows."""
    index = torch.tensor(list(rows), dtype=torch.int64).to(tensor.device)
    return tensor.index_select(0, index)
