"""Arrays of several types in one buffer of int32 words, so that one copy brings them all."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

UNIT = 4  # words: kernels need regions that start at multiples of 16 bytes
Array = npt.NDArray[Any]
Key = TypeVar("Key", bound=Hashable)
_TYPES = {"i4": torch.int32, "i8": torch.int64, "f8": torch.float64}


def region_after(end: int, size: int) -> slice:
    """The next aligned region of ``size`` words."""
    first = -(-end // UNIT) * UNIT
    return slice(first, first + size)


@dataclass(frozen=True)
class Region:
    """An array's place in a buffer, its type and its shape."""

    place: slice
    dtype: torch.dtype
    shape: tuple[int, ...]

    def of(self, buffer: Tensor) -> Tensor:
        """A view of the buffer, int32 [words], with this region's type and shape."""
        words = buffer[self.place]
        typed = words if self.dtype == torch.int32 else words.view(self.dtype)
        return typed if len(self.shape) == 1 else typed.view(self.shape)


def write_regions(
    numbers: npt.NDArray[np.int32], first: int, arrays: Mapping[Key, Array]
) -> tuple[dict[Key, Region], int]:
    """Write arrays of int32, int64 or fp64 into ``numbers`` from ``first`` on.

    Returns:
        Where each is, and the first word after all of them.
    """
    regions, end = {}, first
    for key, array in arrays.items():
        words = array.reshape(-1).view(np.int32)
        place = region_after(end, len(words))
        numbers[place] = words
        regions[key] = Region(place, _TYPES[array.dtype.str[1:]], array.shape)
        end = place.stop
    return regions, end


def words_for(arrays: Mapping[Key, Array]) -> int:
    """Enough words for these arrays."""
    return sum(array.nbytes // 4 + UNIT for array in arrays.values())
