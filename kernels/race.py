"""The race of ``kernels.reference.sampling`` on the device: the same words, times in fp32."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.merge import LOWEST

UNIT = tl.constexpr(2.0**-32)
QUARTER = tl.constexpr(2**30)  # as a word
LOG2 = tl.constexpr(0.6931471805599453)
ROOT_HALF = tl.constexpr(0x3F3504F3)  # bits of the fp32 at or below the root of 1/2


@triton.jit
def race_key(
    keys: tl.tensor, counters: tl.tensor, row: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Key and counters of a row, or of several, from int64 [rows] and [rows, 3]."""
    place = counters + row * 3
    c0 = (tl.load(place) & 0xFFFFFFFF).to(tl.uint32)
    c1 = (tl.load(place + 1) & 0xFFFFFFFF).to(tl.uint32)
    c2 = (tl.load(place + 2) & 0xFFFFFFFF).to(tl.uint32)
    return tl.load(keys + row), c0, c1, c2


@triton.jit
def words_of_block(
    key: tl.tensor,
    c0: tl.tensor,
    c1: tl.tensor,
    c2: tl.tensor,
    start: tl.tensor,
    block: tl.constexpr,
) -> tl.tensor:
    """Words of the tokens ``start + arange(block)`` of one row, uint32; both are multiples of 4."""
    groups = start // 4 + tl.arange(0, block // 4)
    w0, w1, w2, w3 = tl.philox(key, c0, c1, c2, groups)
    return tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))


@triton.jit
def words_of_tile(
    key: tl.tensor,
    c0: tl.tensor,
    c1: tl.tensor,
    c2: tl.tensor,
    start: tl.tensor,
    block: tl.constexpr,
    rows: tl.constexpr,
) -> tl.tensor:
    """The same for several rows at once, [block, rows]; key and counters are [rows]."""
    groups = start // 4 + tl.arange(0, block // 4)
    k0 = (key & 0xFFFFFFFF).to(tl.uint32)[None, :]
    k1 = ((key >> 32) & 0xFFFFFFFF).to(tl.uint32)[None, :]
    c3 = groups.to(tl.uint32)[:, None]
    c0, c1, c2 = c0[None, :], c1[None, :], c2[None, :]
    w0, w1, w2, w3 = tl.philox_impl(c0, c1, c2, c3, k0, k1)
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # [groups, rows, word // 2, word % 2]
    return tl.reshape(tl.permute(words, (0, 2, 3, 1)), (block, rows))


@triton.jit
def words_of_ids(
    key: tl.tensor, c0: tl.tensor, c1: tl.tensor, c2: tl.tensor, ids: tl.tensor
) -> tl.tensor:
    """Words of tokens that lie anywhere, int32 ids; four times the work of a block's."""
    w0, w1, w2, w3 = tl.philox(key, c0, c1, c2, ids // 4)
    place = ids % 4
    return tl.where(place < 2, tl.where(place == 0, w0, w1), tl.where(place == 2, w2, w3))


@triton.jit
def race_times(words: tl.tensor) -> tl.tensor:
    """E = -log(1 - v), v = (word + 1/2) / 2^32, fp32, within some 2e-7 of E wherever it lies.

    Below a quarter it is a polynomial of v: the small times, which win, keep their digits. From
    there on 1 - v is taken from the inverted word, so that it has digits where v is nearly 1, and
    cut into 2^e (1 + f); log(1 + f) is the same polynomial. Written out, because a logarithm of the
    library costs more than all else here, and a fast one does not run in the interpreter.
    """
    low = words < QUARTER
    part = tl.where(low, words, words ^ 0xFFFFFFFF).to(tl.float32) * UNIT + 0.5 * UNIT
    bits = part.to(tl.int32, bitcast=True)
    e = (bits - ROOT_HALF) >> 23
    f = tl.where(low, -part, (bits - (e << 23)).to(tl.float32, bitcast=True) - 1.0)
    p = 0.19898565 + f * (-0.17247013 + f * (0.1623419 + f * -0.10134057))
    p = -0.5000036 + f * (0.33335114 + f * (-0.24970072 + f * p))
    p = f * (0.99999994 + f * p)
    return tl.where(low, -p, e.to(tl.float32) * -LOG2 - p)


@triton.jit
def arrivals(x: tl.tensor, top: tl.tensor, scale: tl.tensor, words: tl.tensor) -> tl.tensor:
    """When each token of logit x arrives, E / p, as if one of logit ``top`` had p = 1.

    The first to arrive wins: an order without the logarithm of z / T - log E. inf where x is -inf.
    """
    return race_times(words) * tl.exp2((tl.maximum(top, LOWEST) - x) * scale)
