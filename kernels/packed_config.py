"""How products with packed weights are cut: by [N, K] and the packing alone, no timing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import triton

from kernels.skinny_config import LEAST_BLOCKS, SMS, Config, Plan

LEAST, MOST = 16, 128  # bytes of a row in a tile: what the matrix instruction takes, what we want


@dataclass(frozen=True)
class Packing:
    """What a packed weight is made of, its size apart.

    name: of the packing, for tables.
    bits: of a weight: 4 and 8 are integers with a middle, 8 with ``eight`` is fp8.
    group: columns that share a scale; 0 for all of a row.
    rows: that share one.
    zeros: whether there are zero points.
    eight: whether weights are fp8.
    """

    name: str
    bits: int
    group: int
    rows: int = 1
    zeros: bool = False
    eight: bool = False


def block_of(packing: Packing, k: int) -> int:
    """Bytes of a row in a tile, all of one group in each half of the row; 0 if there is no such."""
    width = k * packing.bits // 8
    group = packing.group or k
    if group >= k:
        return MOST
    block = MOST
    while block >= LEAST and (group % block or (packing.bits == 4 and width % block)):
        block //= 2
    return block if block >= LEAST else 0


@cache
def plan(n: int, k: int, packing: Packing) -> Plan:
    """The configuration of a shape: a pure function of it, never of M. ``block_k`` is of bytes.

    Two warps and 32 rows keep the compiler from warp-group products, for which it would widen
    weights in one layout and carry them through shared memory to another.
    """
    block, width = block_of(packing, k), k * packing.bits // 8
    if not block:
        raise ValueError(f"group must be a multiple of {LEAST} and so cut K, got {packing.group}")
    narrow = width <= 1024 and n <= 32 * SMS
    # Small tiles take more stages, so that as many bytes are loading.
    config = Config(
        block_n=16 if narrow else 32,
        block_k=block,
        warps=1 if narrow else 2,
        stages={128: 4, 64: 6}.get(block, 8),
    )
    tiles, blocks = triton.cdiv(n, config.block_n), triton.cdiv(width, block)
    wanted = triton.cdiv(2 * SMS, tiles) if width > 1024 else 1
    each = triton.cdiv(blocks, max(1, min(wanted, blocks // LEAST_BLOCKS)))
    return Plan(config, triton.cdiv(blocks, each), each)
