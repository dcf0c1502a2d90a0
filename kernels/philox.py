"""Philox 4x32-10 on the device: the same uniforms as ``kernels.reference.sampling``, to the bit."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def keyed_uniform(seeds: tl.tensor, counters: tl.tensor, row: tl.tensor) -> tl.tensor:
    """A 53-bit uniform in [0, 1), fp64, from int64 seeds [rows] and counters [rows, 4]."""
    seed = tl.load(seeds + row)
    k0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    k1 = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    place = counters + row * 4
    c0 = (tl.load(place) & 0xFFFFFFFF).to(tl.uint32)
    c1 = (tl.load(place + 1) & 0xFFFFFFFF).to(tl.uint32)
    c2 = (tl.load(place + 2) & 0xFFFFFFFF).to(tl.uint32)
    c3 = (tl.load(place + 3) & 0xFFFFFFFF).to(tl.uint32)
    for _ in tl.static_range(10):
        left = c0.to(tl.uint64) * 0xD2511F53
        right = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (right >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (left >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = right.to(tl.uint32)
        c3 = left.to(tl.uint32)
        k0 = (k0.to(tl.uint64) + 0x9E3779B9).to(tl.uint32)
        k1 = (k1.to(tl.uint64) + 0xBB67AE85).to(tl.uint32)
    # The upper 53 of the first 64 bits: an fp64 holds them exactly.
    bits = (c0.to(tl.int64) << 21) | (c1 >> 11).to(tl.int64)
    return bits.to(tl.float64) * 1.1102230246251565e-16
