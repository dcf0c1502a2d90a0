"""How the linear layers of few rows are cut: tiles and splits by [N, K] alone, no timing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import triton

SMS = 132


@dataclass(frozen=True)
class Config:
    """Tile sizes and options of one kind of shape."""

    block_n: int
    block_k: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Plan:
    """How one [N, K] is run, whatever M is."""

    config: Config
    splits: int
    blocks_per_split: int


# Tiles of 256 to 512 bytes of each row of w; three to five programs fit an SM, so that some 100 KB
# of it are always loading there.
WIDE = Config(block_n=64, block_k=128, warps=4, stages=3)
# Small layers: thin tiles give enough programs without a split, whose merge is a second launch.
NARROW = Config(block_n=16, block_k=256, warps=2, stages=4)
# Tiles too small for warp-group products: with those, the compiler loads fp8 by 8 bytes, not 16.
BYTES = Config(block_n=32, block_k=256, warps=2, stages=4)
NARROW_BYTES = Config(block_n=16, block_k=256, warps=1, stages=4)
EXACT = Config(block_n=32, block_k=64, warps=4, stages=3)
LEAST_BLOCKS = 4  # of K in a split: fewer leave the pipeline unfilled


@cache
def plan(n: int, k: int, weight_bytes: int) -> Plan:
    """The configuration of a shape: a pure function of it, never of M."""
    wide, narrow = {1: (BYTES, NARROW_BYTES), 2: (WIDE, NARROW), 4: (EXACT, EXACT)}[weight_bytes]
    config = narrow if k <= 2048 and n <= wide.block_n * SMS else wide
    tiles, blocks = triton.cdiv(n, config.block_n), triton.cdiv(k, config.block_k)
    wanted = triton.cdiv(2 * SMS, tiles) if k > 2048 else 1
    each = triton.cdiv(blocks, max(1, min(wanted, blocks // LEAST_BLOCKS)))
    return Plan(config, triton.cdiv(blocks, each), each)
