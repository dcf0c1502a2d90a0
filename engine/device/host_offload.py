"""Offloads KV of the large model to host memory when the arena is full."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine import _core
from engine._core import LARGE
from engine.device.kv_arena import KVArena
from engine.errors import SteerError
from engine.out_of_memory import is_out_of_memory

PIECE_BYTES = 2**30
Pairs = npt.NDArray[np.int32]  # [copies, 2]


class OffloadCopies:
    """The copies of a plan to host memory and back, taken from the scheduler's buffers.

    tick: number of the plan's tick.
    offloaded: int32 [copies, (block, slot)].
    restored: int32 [copies, (slot, block)].
    """

    def __init__(self, plan: _core.Plan) -> None:
        self.tick = plan.tick
        self.offloaded: Pairs = plan.saves[: plan.saved].copy()
        self.restored: Pairs = plan.restores[: plan.restored].copy()


class HostKVStore:
    """Slots of one block each, in memory that is pinned for a GPU, so that copies do not wait.

    The scheduler knows which slot holds which block. Copies run on the queue of the lane whose plan
    lists them, before its pass.
    """

    def __init__(self, arena: KVArena, slots: int, piece_bytes: int = PIECE_BYTES) -> None:
        """
        Args:
            slots: blocks of the large model that fit.
            piece_bytes: allocated at once, a slot at least: Torch pins a power of two, up to twice
                what it is asked for.

        Raises:
            SteerError: if there is no memory, or the models have cards of their own: then no queue
                could copy the large model's blocks in the small one's ticks.
        """
        if len(arena.devices) > 1:
            raise SteerError(
                "host_kv_tokens needs both models on one device; set it to 0, or do without devices"
            )
        self._arena = arena
        (device,) = arena.devices
        block = arena.geometry.block_bytes[LARGE]
        self._each = max(1, piece_bytes // block)
        try:
            self._pieces = [
                torch.empty(
                    (min(self._each, slots - first), block),
                    dtype=torch.uint8,
                    pin_memory=device.type == "cuda",
                )
                for first in range(0, slots, self._each)
            ]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise SteerError(
                f"no host memory for {slots * block / 2**30:.1f} GiB of KV; lower host_kv_tokens"
            ) from None

    @property
    def bytes(self) -> int:
        """Size of all slots."""
        return sum(piece.numel() for piece in self._pieces)

    def offload(self, pairs: Pairs) -> None:
        """Copy blocks to slots. pairs: int32 [copies, (block, slot)]."""
        for block, slot in pairs.tolist():
            self._slot(slot).copy_(self._block(block), non_blocking=True)

    def restore(self, pairs: Pairs) -> None:
        """Copy slots to blocks. pairs: int32 [copies, (slot, block)]."""
        for slot, block in pairs.tolist():
            self._block(block).copy_(self._slot(slot), non_blocking=True)

    def _slot(self, slot: int) -> Tensor:
        return self._pieces[slot // self._each][slot % self._each]

    def _block(self, block: int) -> Tensor:
        return self._arena.block(LARGE, block)
