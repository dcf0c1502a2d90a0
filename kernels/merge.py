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

from kernels.types.sampling import DrawRows

# Planes: maximum; sum of exp(x - maximum); sum of exp(x - maximum) * (x - maximum). Of what is
# drawn from: when the tile's winner arrives; the maximum; the winner's id, its bits as a float's.
# Only the LM head: runner-up, and the sum without the maximum's own term.
PLANES, HEAD_PLANES = 6, 8
MERGE_WARPS = 4
LOGITS = (torch.bfloat16, torch.float16, torch.float32)

LOG2E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-3.4028234663852886e38)
FLOOR = tl.constexpr(-200.0)  # exp of it is 0 in fp32, and 0 times it is no NaN
BIG = tl.constexpr(2**31 - 1)
MOST_LOG_ODDS = tl.constexpr(87.0)  # as in kernels.reference.confidence


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
    """log2(e) / T as fp32, bounded so that it is no 0 and 0 times it is 0; 0 (greedy) counts as 1.

    Compared and bounded as fp64: in fp32 a small temperature is 0, and would count as 1.
    """
    temperature = tl.load(temperatures + row)
    bounded = tl.minimum(tl.maximum(tl.where(temperature > 0, temperature, 1.0), 1e-30), 1e30)
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
def _winner(
    partials: tl.tensor,
    temperatures: tl.tensor,
    row: tl.tensor,
    tiles: tl.tensor,
    plane: tl.tensor,
    tile_lanes: tl.constexpr,
) -> tl.tensor:
    """The winner among the tiles' winners; equals by the lower id."""
    n = tl.arange(0, tile_lanes)
    place = partials + row * tiles + n
    time = tl.load(place + 3 * plane, mask=n < tiles, other=float("inf"))
    peak = tl.load(place + 4 * plane, mask=n < tiles, other=float("-inf"))
    lost = tl.max(peak, 0) - peak
    scale = inverse_temperature(temperatures, row)
    greedy = tl.load(temperatures + row) <= 0
    time = tl.where(greedy, lost, time * tl.exp2(lost * scale))
    ids = tl.load(place + 5 * plane, mask=n < tiles, other=0.0).to(tl.int32, bitcast=True)
    return tl.min(tl.where(time == tl.min(time, 0), ids, BIG), 0)


@triton.jit(do_not_specialize=("rows", "tiles", "vocabulary"))
def merge_rows(
    logits: tl.tensor,
    partials: tl.tensor,
    firsts: tl.tensor,
    temperatures: tl.tensor,
    values: tl.tensor,
    argmax: tl.tensor,
    token: tl.tensor,
    valid: tl.tensor,
    rows: tl.tensor,
    tiles: tl.tensor,
    head_rows: tl.tensor,
    vocabulary: tl.tensor,
    stride: tl.tensor,
    block: tl.constexpr,
    tile_lanes: tl.constexpr,
    head: tl.constexpr,
    draw: tl.constexpr,
) -> None:
    """One row. Grid: (rows,). ``values`` is fp32 [7, rows]; other results are [rows].

    block: ids a tile. tile_lanes: a power of two, at least ``tiles``. draw: whether
    the tiles have raced. head: the maximum's own term was kept apart by the tiles. Otherwise its
    tile is read a second time, here, where that costs one tile a row, and not an index and a
    runner-up for every logit in the tiles' pass.
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
        second = tl.load(partials + spot + 6 * plane)
        rest = tl.load(partials + spot + 7 * plane)
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
        chosen = _winner(partials, temperatures, row, tiles, plane, tile_lanes)
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
) -> ScoredRows:
    """Launch ``merge_rows`` on the partials of all rows.

    Args:
        logits: [rows, head_rows]; read where a row draws, or has no ``firsts``.
        partials: fp32 [PLANES or HEAD_PLANES, rows, tiles].
        firsts: int32 [rows, tiles], the argmax of each tile, from the LM head; otherwise None.
        block: ids a tile.
        draw: how the tiles have raced, if they have.
    """
    _, rows, tiles = partials.shape
    new = partials.new_empty
    values = new(7, rows)
    argmax, token = new(rows, dtype=torch.int64), new(rows, dtype=torch.int64)
    valid = new(rows, dtype=torch.int8)
    if rows:
        merge_rows[(rows,)](
            logits,
            partials,
            partials if firsts is None else firsts,
            partials if draw is None else draw.temperature,
            values,
            argmax,
            token,
            valid,
            rows,
            tiles,
            logits.shape[1],
            vocabulary,
            logits.stride(0),
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
