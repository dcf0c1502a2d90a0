"""The KV arena: one allocation that both models share, and each model's view of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.config import EngineConfig, ModelConfig
from engine.errors import SteerError
from kernels.ops import KVLayout


@dataclass(frozen=True)
class ArenaGeometry:
    """How the arena is cut: equal slabs, each lent to one model at a time. Sizes in bytes."""

    slabs: int
    slab_bytes: int
    block_bytes: tuple[int, int]

    @property
    def slots(self) -> tuple[int, int]:
        """Blocks of each model in a slab; they need not fill it."""
        return self.slab_bytes // self.block_bytes[0], self.slab_bytes // self.block_bytes[1]

    @classmethod
    def of(
        cls, shapes: tuple[ModelConfig, ModelConfig], config: EngineConfig, element_bytes: int
    ) -> ArenaGeometry:
        """A slab holds one block of the model with the larger blocks.

        It is rounded up to whole head rows of both models, so that each can see the arena as a
        matrix of its own head rows.
        """
        small, large = (config.block_tokens * s.kv_bytes_per_token(element_bytes) for s in shapes)
        unit = math.lcm(*(s.head_dim * element_bytes for s in shapes))
        slab = math.ceil(max(small, large) / unit) * unit
        slabs = math.ceil(config.arena_tokens / config.block_tokens / (slab // large))
        return cls(slabs, slab, (small, large))


class KVArena:
    """Owns the arena's memory for the life of an engine; freed with it. Nothing else holds KV."""

    def __init__(self, geometry: ArenaGeometry, dtype: torch.dtype) -> None:
        self.geometry = geometry
        size = geometry.slabs * geometry.slab_bytes
        try:
            self._memory = torch.zeros(size, dtype=torch.uint8)
        except (RuntimeError, MemoryError):
            raise SteerError(
                f"no memory for an arena of {size / 2**30:.1f} GiB; lower arena_tokens"
            ) from None
        self._dtype = dtype

    @property
    def bytes(self) -> int:
        """Size of the allocation."""
        return self._memory.numel()

    def rows(self, shape: ModelConfig) -> Tensor:
        """The arena as head rows of one model: [arena_rows, head_dim]. A view, never a copy."""
        return self._memory.view(self._dtype).view(-1, shape.head_dim)

    def layout(self, shape: ModelConfig, model: int, block_tokens: int) -> KVLayout:
        """Where the blocks of ``model`` lie among those rows."""
        row_bytes = shape.head_dim * self._dtype.itemsize
        return KVLayout(
            layers=shape.layers,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            block_tokens=block_tokens,
            slots=self.geometry.slots[model],
            slab_rows=self.geometry.slab_bytes // row_bytes,
        )
