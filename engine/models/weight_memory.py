"""Memory for a model's weights: on a CPU, side by side in huge pages if the system has them."""

from __future__ import annotations

import math
import mmap
from contextlib import suppress

import torch
from torch import Tensor

_CHUNK = 64 * 2**20  # bytes mapped at once, or one tensor if that is larger
_ALIGNED = 64


class WeightMemory:
    """Allocates uninitialised tensors one after the other; memory is freed with the tensors.

    A decode step reads all weights, and with 4 KiB pages address translation takes part of that
    time. PyTorch uses larger pages only if an environment variable says so, and for each tensor
    separately, though most tensors are too small for that.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self._map: mmap.mmap | None = None
        self._used = 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor. MemoryError or RuntimeError if memory is out."""
        count = math.prod(shape)
        size = count * dtype.itemsize
        if self._device.type != "cpu" or not size or not hasattr(mmap, "MADV_HUGEPAGE"):
            return torch.empty(shape, dtype=dtype, device=self._device)
        if self._map is None or self._used + size > len(self._map):
            self._map, self._used = _mapped(max(size, _CHUNK)), 0
        start, self._used = self._used, -(-(self._used + size) // _ALIGNED) * _ALIGNED
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=start).view(shape)


def _mapped(size: int) -> mmap.mmap:
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(str(error)) from None
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
