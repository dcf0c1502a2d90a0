"""The KV arena: one allocation that both models share, and a view of it for each model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.config import ARENA_TOKENS, EngineConfig, ModelConfig
from engine.errors import SteerError
from engine.out_of_memory import is_out_of_memory
from kernels.ops import KVLayout


@dataclass(frozen=True)
class ArenaGeometry:
    """How the arena is divided: equal slabs, each lent to one model at a time.

    slabs: their number.
    slab_bytes, block_bytes: bytes of a slab, and of a KV block of each model.
    """

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
        """The geometry for ``config.arena_tokens``; a slab holds one block of the larger kind.

        Slabs are rounded up to whole head rows of both models, so that each model can view the
        arena as a matrix of its own head rows.
        """
        small, large = (config.block_tokens * s.kv_bytes_per_token(element_bytes) for s in shapes)
        unit = math.lcm(*(s.head_dim * element_bytes for s in shapes))
        slab = math.ceil(max(small, large) / unit) * unit
        tokens = config.arena_tokens or ARENA_TOKENS
        slabs = math.ceil(tokens / config.block_tokens / (slab // large))
        return cls(slabs, slab, (small, large))


class KVArena:
    """Owns the memory of all KV on the devices, for the life of an engine.

    For two models on two devices there is an arena of the same geometry on each: a slab is used on
    the device of the model that it is lent to, and is idle on the other.
    """

    def __init__(
        self, geometry: ArenaGeometry, dtype: torch.dtype, devices: tuple[torch.device, ...] = ()
    ) -> None:
        """Allocate the arena; SteerError if memory is too short.

        devices: those of the small and the large model; default: the CPU.
        """
        self.geometry = geometry
        size = geometry.slabs * geometry.slab_bytes
        self._devices = devices or (torch.device("cpu"),) * 2
        asked = f"an arena of {size / 2**30:.1f} GiB"
        lacking = SteerError(f"no memory for {asked}; lower arena_tokens")
        if size >= 2**63:  # more than PyTorch can count
            raise lacking
        try:
            # Not zeroed: every reader masks rows that were not written.
            self._memory = {
                device: torch.empty(size, dtype=torch.uint8, device=device)
                for device in dict.fromkeys(self._devices)
            }
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise lacking from None
        self._dtype = dtype

    @property
    def bytes(self) -> int:
        """Size of the allocations."""
        return sum(memory.numel() for memory in self._memory.values())

    def rows(self, shape: ModelConfig, model: int = 0) -> Tensor:
        """A model's view of the arena: [arena_rows, head_dim] in the arena's dtype."""
        memory = self._memory[self._devices[model]]
        return memory.view(self._dtype).view(-1, shape.head_dim)

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """The devices that hold it: one, or those of the two models."""
        return tuple(self._memory)

    def block(self, model: int, block: int) -> Tensor:
        """A view of the bytes of a block of ``model``: uint8 [block_bytes]."""
        geometry = self.geometry
        slab, place = divmod(block, geometry.slots[model])
        size = geometry.block_bytes[model]
        first = slab * geometry.slab_bytes + place * size
        return self._memory[self._devices[model]][first : first + size]

    def layout(self, shape: ModelConfig, model: int, block_tokens: int) -> KVLayout:
        """Where the blocks of ``model`` lie in :meth:`rows`."""
        row_bytes = shape.head_dim * self._dtype.itemsize
        return KVLayout(
            layers=shape.layers,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            block_tokens=block_tokens,
            slots=self.geometry.slots[model],
            slab_rows=self.geometry.slab_bytes // row_bytes,
        )
