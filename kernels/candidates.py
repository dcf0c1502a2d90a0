"""The short list of a row's likeliest tokens that holds whatever its filters keep, if there is one.

A first kernel counts, on all tiles of a row at once, how many tokens and how much mass lie within
each of a few distances (rungs) of the maximum. A second one takes the shortest rung that is proven
to hold all that the filters can keep, and copies its tokens, in the order of their ids, to a list:

    top-k                     as many tokens as that
    top-p, without a top-k    more than that share of the whole mass
    min-p alone               a distance of at least its own

What is drawn from such a list is what would be drawn from the row: tokens below it were not kept.
Rows without a rung of at most MOST tokens keep a list of none, and are searched as a whole.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.merge import LOWEST, inverse_temperature, load_logits
from kernels.types.sampling import DrawRows

MOST = 4096  # tokens in a list
BLOCK, WARPS = 1024, 1
RUNGS = 8
STEP = tl.constexpr(2.0)  # nats between rungs; where the temperature is above 1, times it
SURE = tl.constexpr(1.0 + 1e-5)  # far more than sums in another order can differ


class Candidates(NamedTuple):
    """values fp32 and ids int32 [rows, MOST], of which ``sizes`` int32 [rows] are there; total
    fp64 [rows]: mass of all tokens at the row's temperature, relative to its maximum.
    """

    values: Tensor
    ids: Tensor
    sizes: Tensor
    total: Tensor


@triton.jit
def filters_of(
    temperatures: tl.tensor,
    top_ks: tl.tensor,
    top_ps: tl.tensor,
    min_ps: tl.tensor,
    valid: tl.tensor,
    row: tl.tensor,
    vocabulary: tl.tensor,
    has_top_k: tl.constexpr,
    has_top_p: tl.constexpr,
    has_min_p: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Whether a row has a filter; then temperature, top-k (0: off), top-p (1: off), min-p."""
    temperature = tl.load(temperatures + row)
    top_k = tl.load(top_ks + row) if has_top_k else row * 0
    top_p = tl.load(top_ps + row) if has_top_p else temperature * 0 + 1
    min_p = tl.load(min_ps + row) if has_min_p else temperature * 0
    top_k = tl.where(top_k < vocabulary, top_k, 0)
    on = (temperature > 0) & (tl.load(valid + row) != 0)
    on = on & ((top_k > 0) | (top_p < 1) | (min_p > 0))
    return on, temperature, top_k, top_p, min_p


@triton.jit
def _row_top(
    partials: tl.tensor, row: tl.tensor, rows: tl.tensor, peaks: tl.tensor, peak_lanes: tl.constexpr
) -> tl.tensor:
    """The maximum of what a row draws from, of the tiles' maxima (plane 4 of the partials)."""
    n = tl.arange(0, peak_lanes)
    place = partials + (4 * rows.to(tl.int64) + row) * peaks + n
    return tl.maximum(tl.max(tl.load(place, mask=n < peaks, other=float("-inf")), 0), LOWEST)


@triton.jit
def _floor_of(top: tl.tensor, temperature: tl.tensor, rung: tl.constexpr) -> tl.tensor:
    """The least logit of a rung."""
    return top - tl.maximum(temperature.to(tl.float32), 1.0) * STEP * (rung + 1)


@triton.jit(do_not_specialize=("rows", "peaks", "vocabulary"))
def count_rungs(
    source: tl.tensor,
    partials: tl.tensor,
    temperatures: tl.tensor,
    top_ks: tl.tensor,
    top_ps: tl.tensor,
    min_ps: tl.tensor,
    valid: tl.tensor,
    counts: tl.tensor,
    masses: tl.tensor,
    rows: tl.tensor,
    peaks: tl.tensor,
    width: tl.tensor,
    vocabulary: tl.tensor,
    stride: tl.tensor,
    has_top_k: tl.constexpr,
    has_top_p: tl.constexpr,
    has_min_p: tl.constexpr,
    peak_lanes: tl.constexpr,
    block: tl.constexpr,
    rungs: tl.constexpr,
) -> None:
    """Grid: (rows, tiles). What lies within each rung of one tile of ``block`` ids of one row.

    ``counts`` int32 [rows, rungs, tiles] of tokens, ``masses`` fp32 [rows, rungs + 1, tiles], the
    last one of all. has_top_k, has_top_p, has_min_p: which filters are given. peak_lanes: a power
    of two, at least ``peaks``.
    """
    row, tile, tiles = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    on, temperature, _, _, _ = filters_of(
        temperatures,
        top_ks,
        top_ps,
        min_ps,
        valid,
        row,
        vocabulary,
        has_top_k,
        has_top_p,
        has_min_p,
    )
    if not on:
        return
    top = _row_top(partials, row, rows, peaks, peak_lanes)
    ids = tile * block + tl.arange(0, block)
    x = load_logits(source + row * stride, ids, width, vocabulary)
    mass = tl.exp2((x - top) * inverse_temperature(temperatures, row))
    for rung in tl.static_range(rungs):
        inside = (x >= _floor_of(top, temperature, rung)) & (x > float("-inf"))
        count = tl.sum(inside.to(tl.int32), 0)
        tl.store(counts + (row * rungs + rung) * tiles + tile, count)
        part = tl.sum(tl.where(inside, mass, 0.0), 0)
        tl.store(masses + (row * (rungs + 1) + rung) * tiles + tile, part)
    tl.store(masses + (row * (rungs + 1) + rungs) * tiles + tile, tl.sum(mass, 0))


@triton.jit(do_not_specialize=("rows", "peaks", "vocabulary"))
def gather_candidates(
    source: tl.tensor,
    partials: tl.tensor,
    temperatures: tl.tensor,
    top_ks: tl.tensor,
    top_ps: tl.tensor,
    min_ps: tl.tensor,
    valid: tl.tensor,
    counts: tl.tensor,
    masses: tl.tensor,
    values: tl.tensor,
    found: tl.tensor,
    sizes: tl.tensor,
    totals: tl.tensor,
    rows: tl.tensor,
    peaks: tl.tensor,
    width: tl.tensor,
    vocabulary: tl.tensor,
    stride: tl.tensor,
    has_top_k: tl.constexpr,
    has_top_p: tl.constexpr,
    has_min_p: tl.constexpr,
    peak_lanes: tl.constexpr,
    tile_lanes: tl.constexpr,
    block: tl.constexpr,
    rungs: tl.constexpr,
    most: tl.constexpr,
) -> None:
    """Grid: (rows, tiles). Every program finds the same rung, and its own place in the list.

    ``values`` and ``found`` (ids) are [rows, most], ``sizes`` and ``totals`` [rows]; the rest as in
    ``count_rungs``. tile_lanes: a power of two, at least the tiles.
    """
    row, tile, tiles = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    on, temperature, top_k, top_p, min_p = filters_of(
        temperatures,
        top_ks,
        top_ps,
        min_ps,
        valid,
        row,
        vocabulary,
        has_top_k,
        has_top_p,
        has_min_p,
    )
    if not on:
        return
    top = _row_top(partials, row, rows, peaks, peak_lanes)
    n = tl.arange(0, tile_lanes)
    there = n < tiles
    at = masses + row * (rungs + 1) * tiles + n
    total = tl.sum(tl.load(at + rungs * tiles, mask=there, other=0.0).to(tl.float64), 0)
    least = top.to(tl.float64) + temperature * tl.log(tl.maximum(min_p, 1e-300))
    size, before = tile * 0, tile * 0
    level = top
    for rung in tl.static_range(rungs - 1, -1, -1):  # the shortest that is enough comes last
        low = _floor_of(top, temperature, rung)
        count = tl.load(counts + (row * rungs + rung) * tiles + n, mask=there, other=0)
        tokens = tl.sum(count, 0)
        mass = tl.sum(tl.load(at + rung * tiles, mask=there, other=0.0).to(tl.float64), 0)
        enough = tl.where(top_p < 1, mass >= top_p * total * SURE, low.to(tl.float64) <= least)
        enough = tl.where(top_k > 0, tokens >= top_k, enough) & (tokens <= most)
        size = tl.where(enough, tokens, size)
        before = tl.where(enough, tl.sum(tl.where(n < tile, count, 0), 0), before)
        level = tl.where(enough, low, level)
    if tile == 0:
        tl.store(sizes + row, size)
        tl.store(totals + row, total)
    if size == 0:
        return
    ids = tile * block + tl.arange(0, block)
    x = load_logits(source + row * stride, ids, width, vocabulary)
    inside = (x >= level) & (x > float("-inf"))
    place = row * most + before + tl.cumsum(inside.to(tl.int32), 0) - 1
    tl.store(values + place, x, mask=inside)
    tl.store(found + place, ids, mask=inside)


def gather(
    source: Tensor, partials: Tensor, vocabulary: int, draw: DrawRows, valid: Tensor
) -> Candidates:
    """The lists of all rows; nothing is written for rows that have no filter.

    Args:
        source: [rows, width], what is drawn from.
        partials: fp32 [planes, rows, tiles], with the tiles' maxima of ``source`` in plane 4.
        vocabulary: ids from here on are padding.
        draw: how to draw; some filter must be given.
        valid: int8 [rows], whether a row has a distribution.
    """
    rows, tiles = len(source), triton.cdiv(vocabulary, BLOCK)
    new, peaks = partials.new_empty, partials.shape[2]
    counts = new(rows, RUNGS, tiles, dtype=torch.int32)
    masses = new(rows, RUNGS + 1, tiles)
    found = Candidates(
        new(rows, MOST),
        new(rows, MOST, dtype=torch.int32),
        new(rows, dtype=torch.int32),
        new(rows, dtype=torch.float64),
    )
    columns = (draw.temperature, *filter_columns(draw), valid)
    sizes = (rows, peaks, source.shape[1], vocabulary, source.stride(0))
    constants = {
        **filter_flags(draw),
        "peak_lanes": triton.next_power_of_2(peaks),
        "block": BLOCK,
        "rungs": RUNGS,
    }
    count_rungs[(rows, tiles)](
        source, partials, *columns, counts, masses, *sizes, **constants, num_warps=WARPS
    )
    gather_candidates[(rows, tiles)](
        source,
        partials,
        *columns,
        counts,
        masses,
        *found,
        *sizes,
        **constants,
        tile_lanes=triton.next_power_of_2(tiles),
        most=MOST,
        num_warps=WARPS,
    )
    return found


def filter_columns(draw: DrawRows) -> tuple[Tensor, Tensor, Tensor]:
    """Top-k, top-p, min-p for a launch; a filter that is not given is not read."""
    return (
        draw.key if draw.top_k is None else draw.top_k,
        draw.temperature if draw.top_p is None else draw.top_p,
        draw.temperature if draw.min_p is None else draw.min_p,
    )


def filter_flags(draw: DrawRows) -> dict[str, bool]:
    """Constants of a launch: which filters are given."""
    given = {"has_top_k": draw.top_k, "has_top_p": draw.top_p, "has_min_p": draw.min_p}
    return {name: column is not None for name, column in given.items()}
