"""Whole blocks of keys and values copied within the arena, all pairs in one launch.

A block is ``layout.block_rows`` rows of ``head_dim`` elements, all layers of a model. Bits are
moved, not numbers: any type of 16 or 32 bits, NaN too. Pairs are int32 [pairs, (from, to)]; no
block that is written may be in another pair, so their order does not matter.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arena import FLOATS, check_layout
from kernels.checks import check_device, check_tensor
from kernels.types.attention import KVLayout

WORDS = 4096  # of 32 bits, a program: 32 a thread, in 16-byte loads that are all in flight
WARPS = 4
_PAIRS = 65535  # the most that a grid's second dimension holds


@triton.jit(do_not_specialize=("slots", "slab_words"))
def copy_kernel(
    memory: tl.tensor,
    pairs: tl.tensor,
    slots: tl.tensor,
    slab_words: tl.tensor,
    block_words: tl.tensor,
    size: tl.constexpr,
    unit: tl.constexpr,
) -> None:
    """Grid: (parts of a block, pairs). ``unit``: slabs and blocks are multiples of it."""
    source = tl.load(pairs + 2 * tl.program_id(1))
    target = tl.load(pairs + 2 * tl.program_id(1) + 1)
    if (source < 0) | (source == target):
        return
    slab, slab_2 = source // slots, target // slots
    slab_units = slab_words // unit
    units = block_words // unit
    within = tl.program_id(0) * size + tl.arange(0, size)
    inside = within < block_words
    first = slab.to(tl.int64) * slab_units + (source - slab * slots).to(tl.int64) * units
    first_2 = slab_2.to(tl.int64) * slab_units + (target - slab_2 * slots).to(tl.int64) * units
    words = tl.load(memory + first * unit + within, mask=inside)
    tl.store(memory + first_2 * unit + within, words, mask=inside)


def copy_blocks(arena: Tensor, layout: KVLayout, copies: Tensor) -> None:
    """Copy whole blocks of one model.

    Args:
        arena: [arena_rows, head_dim], written in place.
        layout: of the model; a row must be a multiple of 16 bytes.
        copies: int32 [pairs, (from, to)], block ids on the arena's device. A pair whose ``from``
            is below 0, or the same as its ``to``, is padding.
    """
    check_tensor("arena", arena, (None, layout.head_dim), FLOATS)
    check_device("arena", arena, copy_kernel)
    check_layout(layout)
    if layout.head_dim * arena.element_size() % 16:
        raise ValueError(
            f"layout.head_dim must make rows of a multiple of 16 bytes, got {layout.head_dim} "
            f"elements of {arena.element_size()}"
        )
    if arena.data_ptr() % 16:
        raise ValueError("arena must start at a multiple of 16 bytes, got a slice that does not")
    check_tensor("copies", copies, (None, 2), (torch.int32,), like=arena)
    memory = arena.view(torch.int32)
    block_words = layout.block_rows * memory.shape[1]
    for pairs in torch.split(copies, _PAIRS):
        if len(pairs):
            copy_kernel[(triton.cdiv(block_words, WORDS), len(pairs))](
                memory,
                pairs,
                layout.slots,
                layout.slab_rows * memory.shape[1],
                block_words,
                size=WORDS,
                unit=4,
                num_warps=WARPS,
            )
