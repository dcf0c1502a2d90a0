"""Searches for the key at which a sum over all likelier tokens of a row reaches a goal.

A key is a float's bits in order. Two of them are fixed in each pass: no sort, and exact.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.merge import load_logits


@triton.jit
def keys_of(x: tl.tensor, shift: tl.constexpr) -> tl.tensor:
    """Floats as uint32 of the same order; both zeros are one."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    return ((bits ^ ((bits >> 31) | -2147483648)).to(tl.uint32, bitcast=True)) >> shift


@triton.jit
def value_of(key: tl.tensor, shift: tl.constexpr) -> tl.tensor:
    """The float of an int64 key."""
    negative = key < (1 << (31 - shift))
    whole = (key << shift) | tl.where(negative, (1 << shift) - 1, 0)
    bits = tl.where(negative, 0xFFFFFFFF - whole, whole ^ 0x80000000)
    return bits.to(tl.uint32).to(tl.float32, bitcast=True)


@triton.jit
def search(
    source: tl.tensor,
    width: tl.tensor,
    vocabulary: tl.tensor,
    top: tl.tensor,
    scale: tl.tensor,
    goal: tl.tensor,
    counting: tl.constexpr,
    shift: tl.constexpr,
    chunk: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The highest key from which on upwards the sum reaches ``goal``, and the sum above that key.

    counting: of tokens, otherwise of exp((x - top) / T). shift: low bits that all keys lack. chunk:
    logits that are read at once.
    """
    levels: tl.constexpr = (32 - shift) // 2
    found = vocabulary.to(tl.int64) * 0
    above = goal * 0.0
    for level in range(levels):
        step = (found * 0 + 1) << (2 * (levels - 1 - level))
        one, two, three = found + step, found + 2 * step, found + 3 * step
        sum1 = tl.zeros((chunk,), tl.float32)
        sum2 = tl.zeros((chunk,), tl.float32)
        sum3 = tl.zeros((chunk,), tl.float32)
        for start in range(0, vocabulary, chunk):
            x = load_logits(source, start + tl.arange(0, chunk), width, vocabulary)
            key = keys_of(x, shift)
            mass = sum1 * 0.0 + 1.0 if counting else tl.exp2((x - top) * scale)
            sum1 += tl.where(key >= one.to(tl.uint32), mass, 0.0)
            sum2 += tl.where(key >= two.to(tl.uint32), mass, 0.0)
            sum3 += tl.where(key >= three.to(tl.uint32), mass, 0.0)
        all1 = tl.sum(sum1.to(tl.float64), 0)
        all2 = tl.sum(sum2.to(tl.float64), 0)
        all3 = tl.sum(sum3.to(tl.float64), 0)
        hit1, hit2, hit3 = all1 >= goal, all2 >= goal, all3 >= goal
        # The lowest key that failed so far is at last the one right above the answer.
        above = tl.where(hit3, above, tl.where(hit2, all3, tl.where(hit1, all2, all1)))
        found = tl.where(hit3, three, tl.where(hit2, two, tl.where(hit1, one, found)))
    return found, above


@triton.jit
def mass_from(
    source: tl.tensor,
    width: tl.tensor,
    vocabulary: tl.tensor,
    top: tl.tensor,
    scale: tl.tensor,
    pivot: tl.tensor,
    shift: tl.constexpr,
    chunk: tl.constexpr,
) -> tl.tensor:
    """The sum of exp((x - top) / T) over keys of at least ``pivot``, fp64."""
    total = tl.zeros((chunk,), tl.float32)
    for start in range(0, vocabulary, chunk):
        x = load_logits(source, start + tl.arange(0, chunk), width, vocabulary)
        mass = tl.exp2((x - top) * scale)
        total += tl.where(keys_of(x, shift) >= pivot.to(tl.uint32), mass, 0.0)
    return tl.sum(total.to(tl.float64), 0)
