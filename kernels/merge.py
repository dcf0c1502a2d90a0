"""Second half of the confidence: partial results of the tiles of a row become the row's.

The partials are fp32 [PLANES, rows, tiles]; one program a row adds them in a fixed order. Shared by
the statistics of stored logits and by the LM head that may never store any. The online form of the
softmax is that of Milakov and Gimelshein; the shifted sum keeps the entropy's digits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.philox import keyed_uniform
from kernels.types.sampling import DrawRows

# Planes: maximum; sum of exp(x - maximum); sum of exp(x - maximum) * (x - maximum); the sum at the
# row's temperature of what is sampled from, and its maximum. Only the LM head: runner-up, and the
# sum without the maximum's own term.
PLANES, HEAD_PLANES = 5, 7
MERGE_WARPS = 4
LOGITS = (torch.bfloat16, torch.float16, torch.float32)

LOG2E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-3.4028234663852886e38)
FLOOR = tl.constexpr(-200.0)  # exp of it is 0 in fp32, and 0 times it is no NaN
BIG = tl.constexpr(2**31 - 1)
MOST_LOG_ODDS = tl.constexpr(87.0)  # as in kernels.reference.confidence
BELOW_ONE = tl.constexpr(1 - 2.0**-53)


class ScoredRows(NamedTuple):
    """Per row, [rows]: ``Confidence``'s fields, then what was drawn. Natural logarithms.

    fp32, but ``argmax`` and ``token`` int64 and ``valid`` bool. In a row that is not valid every
    other field is NaN, and ids are 0.

    token: drawn id; the argmax where nothing was to be drawn.
    logprob: of ``token`` at temperature 1, before any penalty, mask or truncation.
    """

    entropy: Tensor
    max_prob: Tensor
    log_odds: Tensor
    margin: Tensor
    max_logit: Tensor
    logsumexp: Tensor
    argmax: Tensor
    valid: Tensor
    token: Tensor
    logprob: Tensor


@triton.jit
def inverse_temperature(temperatures: tl.tensor, row: tl.tensor) -> tl.tensor:
    """log2(e) / T as fp32, bounded so that 0 times it stays 0; 0 (greedy) counts as 1.

    Compared and bounded as fp64: in fp32 a small temperature is 0, and would count as 1.
    """
    temperature = tl.load(temperatures + row)
    bounded = tl.maximum(tl.where(temperature > 0, temperature, 1.0), 1e-30)
    return LOG2E / bounded.to(tl.float32)


@triton.jit
def load_logits(
    place: tl.tensor, ids: tl.tensor, width: tl.tensor, vocabulary: tl.tensor
) -> tl.tensor:
    """Logits of a row as fp32, -inf where there is no id.

    ``width`` of the row, unlike the vocabulary, is a multiple of a load's 16 bytes.
    """
    x = tl.load(place + ids, mask=ids < width, other=float("-inf")).to(tl.float32)
    return tl.where(ids < vocabulary, x, float("-inf"))


@triton.jit
def _pick(mass: tl.tensor, ids: tl.tensor, share: tl.tensor) -> tl.tensor:
    """The first id whose cumulative mass exceeds ``share`` (fp64 below 1) of all; never mass 0."""
    total = tl.cumsum(mass, 0)
    reached = (total > share * tl.max(total, 0)) & (mass > 0)
    # A sum in another order may miss the end by an ulp: then the last that has any mass.
    last = tl.max(tl.where(mass > 0, ids, 0), 0)
    return tl.minimum(tl.min(tl.where(reached, ids, BIG), 0), last)


@triton.jit
def _draw(
    source: tl.tensor,
    partials: tl.tensor,
    temperatures: tl.tensor,
    seeds: tl.tensor,
    counters: tl.tensor,
    row: tl.tensor,
    tiles: tl.tensor,
    plane: tl.tensor,
    width: tl.tensor,
    vocabulary: tl.tensor,
    stride: tl.tensor,
    block: tl.constexpr,
    tile_lanes: tl.constexpr,
) -> tl.tensor:
    """A token of a row of ``source``: first its tile, by the tiles' sums, then within the tile.

    Both are the inverse of a cumulative sum in fp64, and one uniform serves both: what is left of
    it inside the tile's share goes on. So the order is that of the ids.
    """
    n = tl.arange(0, tile_lanes)
    place = partials + row * tiles + n
    mass = tl.load(place + 3 * plane, mask=n < tiles, other=0.0)
    peak = tl.load(place + 4 * plane, mask=n < tiles, other=float("-inf"))
    scale = inverse_temperature(temperatures, row)
    top = tl.max(peak, 0)
    mass = (mass * tl.exp2((peak - tl.maximum(top, LOWEST)) * scale)).to(tl.float64)
    total = tl.cumsum(mass, 0)
    goal = keyed_uniform(seeds, counters, row) * tl.max(total, 0)
    greedy = tl.load(temperatures + row) <= 0
    last = tl.max(tl.where(mass > 0, n, 0), 0)
    tile = tl.minimum(tl.min(tl.where((total > goal) & (mass > 0), n, BIG), 0), last)
    own = tl.sum(tl.where(n == tile, mass, 0.0), 0)
    before = tl.sum(tl.where(n == tile, total, 0.0), 0) - own
    share = tl.minimum(tl.maximum((goal - before) / own, 0.0), BELOW_ONE)
    tile = tl.where(greedy, tl.min(tl.where(peak == top, n, tile_lanes), 0), tile)
    peak = tl.max(tl.where(n == tile, peak, float("-inf")), 0)
    ids = tile * block + tl.arange(0, block)
    y = load_logits(source + row * stride, ids, width, vocabulary)
    weight = tl.exp2((y - tl.maximum(peak, LOWEST)) * scale).to(tl.float64)
    first = tl.min(tl.where(y == peak, ids, BIG), 0)
    return tl.where(greedy, first, _pick(weight, ids, share))


@triton.jit(do_not_specialize=("rows", "tiles", "vocabulary"))
def merge_rows(
    logits: tl.tensor,
    source: tl.tensor,
    partials: tl.tensor,
    firsts: tl.tensor,
    temperatures: tl.tensor,
    seeds: tl.tensor,
    counters: tl.tensor,
    values: tl.tensor,
    argmax: tl.tensor,
    token: tl.tensor,
    valid: tl.tensor,
    rows: tl.tensor,
    tiles: tl.tensor,
    head_rows: tl.tensor,
    source_rows: tl.tensor,
    vocabulary: tl.tensor,
    stride: tl.tensor,
    source_stride: tl.tensor,
    block: tl.constexpr,
    tile_lanes: tl.constexpr,
    head: tl.constexpr,
    draw: tl.constexpr,
) -> None:
    """One row. Grid: (rows,). ``values`` is fp32 [7, rows]; other results are [rows].

    block: ids a tile. tile_lanes: a power of two, at least ``tiles``. draw: whether to draw a
    token from ``source``. head: the maximum's own term was kept apart by the tiles, no logits are
    needed. Otherwise its tile is read a second time, here, where that costs one tile a row, and not
    an index and a runner-up for every logit in the tiles' pass.
    """
    row = tl.program_id(0).to(tl.int64)
    plane = rows.to(tl.int64) * tiles
    n = tl.arange(0, tile_lanes)
    place = partials + row * tiles + n
    peak = tl.load(place, mask=n < tiles, other=float("-inf"))
    sums = tl.load(place + plane, mask=n < tiles, other=0.0)
    shifted = tl.load(place + 2 * plane, mask=n < tiles, other=0.0)
    top = tl.max(peak, 0)
    base = tl.maximum(top, LOWEST)
    winner = tl.min(tl.where(peak == top, n, tile_lanes), 0)
    winner = tl.where(winner < tiles, winner, 0)  # NaN equals nothing
    if head:
        spot = row * tiles + winner
        first = tl.load(firsts + spot)
        second = tl.load(partials + spot + 5 * plane)
        rest = tl.load(partials + spot + 6 * plane)
        surprise = tl.load(partials + spot + 2 * plane)
    else:
        ids = winner * block + tl.arange(0, block)
        x = load_logits(logits + row * stride, ids, head_rows, vocabulary)
        first = tl.min(tl.where(x == top, ids, BIG), 0)
        x = tl.where(ids == first, float("-inf"), x)
        second = tl.max(x, 0)
        d = tl.maximum(x - base, FLOOR, propagate_nan=tl.PropagateNan.ALL)
        e = tl.exp2(d * LOG2E)
        rest = tl.sum(e, 0)
        surprise = tl.sum(e * d, 0)
    lost = tl.maximum(peak - base, FLOOR, propagate_nan=tl.PropagateNan.ALL)
    scale = tl.exp2(lost * LOG2E)
    others = n != winner
    second = tl.maximum(second, tl.max(tl.where(others, peak, float("-inf")), 0))
    rest += tl.sum(tl.where(others, scale * sums, 0.0), 0)
    surprise += tl.sum(tl.where(others, scale * (shifted + lost * sums), 0.0), 0)
    total = 1.0 + rest
    # log1p: the rounding of 1 + rest is taken out again
    log_total = tl.where(total > 1.0, tl.log(total) * (rest / (total - 1.0)), rest)
    usable = (top > float("-inf")) & (top < float("inf")) & (total < float("inf"))
    chosen = first
    logprob = -log_total
    if draw:
        chosen = _draw(
            source,
            partials,
            temperatures,
            seeds,
            counters,
            row,
            tiles,
            plane,
            source_rows,
            vocabulary,
            source_stride,
            block,
            tile_lanes,
        )
        chosen = tl.where(usable & (chosen < vocabulary), chosen, 0)
        x = tl.load(logits + row * stride + chosen).to(tl.float32)
        # A stored logit may have been rounded up above the maximum that was not.
        logprob = tl.where(chosen == first, -log_total, tl.minimum(x - top, 0.0) - log_total)
    odds = tl.minimum(-tl.log(tl.maximum(rest, 1e-38)), MOST_LOG_ODDS)
    odds = tl.where(second > float("-inf"), odds, float("inf"))
    nan = float("nan")
    out = values + row
    width = rows.to(tl.int64)
    tl.store(out, tl.where(usable, log_total - surprise / total, nan))
    tl.store(out + width, tl.where(usable, 1.0 / total, nan))
    tl.store(out + 2 * width, tl.where(usable, odds, nan))
    tl.store(out + 3 * width, tl.where(usable, top - second, nan))
    tl.store(out + 4 * width, tl.where(usable, top, nan))
    tl.store(out + 5 * width, tl.where(usable, top + log_total, nan))
    tl.store(out + 6 * width, tl.where(usable, logprob, nan))
    tl.store(argmax + row, tl.where(usable, first, 0).to(tl.int64))
    tl.store(token + row, tl.where(usable, chosen, 0).to(tl.int64))
    tl.store(valid + row, usable.to(tl.int8))


def merge(
    logits: Tensor,
    partials: Tensor,
    firsts: Tensor | None,
    vocabulary: int,
    block: int,
    draw: DrawRows | None,
    source: Tensor | None,
) -> ScoredRows:
    """Launch ``merge_rows`` on the partials of all rows.

    Args:
        logits: [rows, head_rows]; read where a row draws, or has no ``firsts``.
        partials: fp32 [PLANES or HEAD_PLANES, rows, tiles].
        firsts: int32 [rows, tiles], the argmax of each tile, from the LM head; otherwise None.
        block: ids a tile.
        source: what to draw from; None: ``logits``.
    """
    _, rows, tiles = partials.shape
    new = partials.new_empty
    values = new(7, rows)
    argmax, token = new(rows, dtype=torch.int64), new(rows, dtype=torch.int64)
    valid = new(rows, dtype=torch.int8)
    source = logits if source is None else source
    if rows:
        merge_rows[(rows,)](
            logits,
            source,
            partials,
            partials if firsts is None else firsts,
            partials if draw is None else draw.temperature,
            argmax if draw is None else draw.seed,
            argmax if draw is None else draw.counter,
            values,
            argmax,
            token,
            valid,
            rows,
            tiles,
            logits.shape[1],
            source.shape[1],
            vocabulary,
            logits.stride(0),
            source.stride(0),
            block=block,
            tile_lanes=triton.next_power_of_2(tiles),
            head=firsts is not None,
            draw=draw is not None,
            num_warps=MERGE_WARPS,
        )
    entropy, prob, odds, margin, top, total, logprob = values
    return ScoredRows(
        entropy, prob, odds, margin, top, total, argmax, valid.view(torch.bool), token, logprob
    )
