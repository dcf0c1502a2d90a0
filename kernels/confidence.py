"""Confidence statistics and a draw from logits [rows, head_rows] in two launches, on a GPU.

The vocabulary alone is split, into tiles of one size: a row's result does not depend on what else
is in the batch, to the bit. The first kernel leaves six numbers a tile, the winner of the tile's
race among them; ``kernels.merge`` makes them the row's. Rows with filters get their token from
``kernels.sampling``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.checks import check_device, check_tensor
from kernels.merge import (
    BIG,
    FLOOR,
    LOG2E,
    LOGITS,
    LOWEST,
    PLANES,
    ScoredRows,
    inverse_temperature,
    load_logits,
    merge,
)
from kernels.race import arrivals, race_key, words_of_block
from kernels.sampling import draw_filtered
from kernels.types.sampling import DrawRows

# One warp a tile: sums need no shared memory and no barrier, and 25 programs fit on an SM, so that
# 100 KB are under way. Fixed: both decide the order of the sums.
BLOCK, WARPS = 2048, 1
RACE = 256  # ids of a tile that race at once: all would not fit the registers
SCORE_BLOCK = 1024


@triton.jit
def race_in_tile(
    place: tl.tensor,
    peak: tl.tensor,
    temperatures: tl.tensor,
    keys: tl.tensor,
    counters: tl.tensor,
    row: tl.tensor,
    tile: tl.tensor,
    width: tl.tensor,
    vocabulary: tl.tensor,
    block: tl.constexpr,
    race: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """When a tile's winner arrives, relative to its ``peak``, and its id.

    In greedy rows the winner is the first of the greatest, and its time 0.
    """
    scale = inverse_temperature(temperatures, row)
    drawn = tl.load(temperatures + row) > 0
    key, c0, c1, c2 = race_key(keys, counters, row)
    soonest = tl.full((race,), float("inf"), tl.float32)
    token = tl.full((race,), BIG, tl.int32)
    for start in range(tile * block, tl.minimum(tile * block + block, vocabulary), race):
        ids = start + tl.arange(0, race)
        x = load_logits(place, ids, width, vocabulary)
        time = peak - x
        if drawn:
            words = words_of_block(key, c0, c1, c2, start, race)
            time = arrivals(x, peak, scale, words)
        token = tl.where(time < soonest, ids, token)
        soonest = tl.minimum(soonest, time)
    least = tl.min(soonest, 0)
    return least, tl.min(tl.where(soonest == least, token, BIG), 0)


@triton.jit(do_not_specialize=("rows", "vocabulary"))
def tile_statistics(
    logits: tl.tensor,
    temperatures: tl.tensor,
    keys: tl.tensor,
    counters: tl.tensor,
    partials: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    vocabulary: tl.tensor,
    stride: tl.tensor,
    block: tl.constexpr,
    race: tl.constexpr,
    statistics: tl.constexpr,
    draw: tl.constexpr,
) -> None:
    """One tile of ``block`` ids of one row. Grid: (rows, tiles). See the head of this file.

    ``partials`` is fp32 [PLANES, rows, tiles]. race: ids that race at once. statistics, draw:
    whether to store what they need.
    """
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    ids = tile * block + tl.arange(0, block)
    # The width of a row is a multiple of a load's 16 bytes, the vocabulary need not be one.
    x = tl.load(logits + row * stride + ids, mask=ids < width, other=float("-inf")).to(tl.float32)
    if (tile + 1) * block > vocabulary:
        x = tl.where(ids < vocabulary, x, float("-inf"))
    peak = tl.max(x, 0)
    place = partials + row * tl.num_programs(1) + tile
    plane = rows.to(tl.int64) * tl.num_programs(1)
    if statistics:
        # NaN and inf - inf go on into the sums, and flag the row there.
        d = x - tl.maximum(peak, LOWEST)
        clamped = tl.maximum(d, FLOOR, propagate_nan=tl.PropagateNan.ALL)
        e = tl.exp2(clamped * LOG2E)
        tl.store(place, peak)
        tl.store(place + plane, tl.sum(e, 0))
        tl.store(place + 2 * plane, tl.sum(e * clamped, 0))
    if draw:
        soonest, token = race_in_tile(
            logits + row * stride,
            peak,
            temperatures,
            keys,
            counters,
            row,
            tile,
            width,
            vocabulary,
            block,
            race,
        )
        tl.store(place + 3 * plane, soonest)
        tl.store(place + 4 * plane, peak)
        tl.store(place + 5 * plane, token.to(tl.float32, bitcast=True))


@triton.jit(do_not_specialize=("count", "vocabulary"))
def score_targets(
    logits: tl.tensor,
    targets: tl.tensor,
    peaks: tl.tensor,
    probs: tl.tensor,
    out: tl.tensor,
    count: tl.tensor,
    vocabulary: tl.tensor,
    stride: tl.tensor,
    target_stride: tl.tensor,
    block: tl.constexpr,
) -> None:
    """Log-probabilities of ``block`` targets of one row; NaN where one is no id.

    Grid: (rows, tiles of ``count``). ``out`` is fp32 [rows, count].
    """
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * block + tl.arange(0, block)
    inside = n < count
    ids = tl.load(targets + row * target_stride + n, mask=inside, other=-1)
    known = (ids >= 0) & (ids < vocabulary)
    x = tl.load(logits + row * stride + ids, mask=known, other=float("nan")).to(tl.float32)
    # From the maximum: the log-sum-exp itself has lost digits where logits are large.
    found = (x - tl.load(peaks + row)) + tl.log(tl.load(probs + row))
    tl.store(out + row * count + n, found, mask=inside)


def confidence(
    logits: Tensor, vocabulary: int, draw: DrawRows | None = None, source: Tensor | None = None
) -> ScoredRows:
    """Statistics of each row at temperature 1, and a token of each row.

    Args:
        logits: [rows, head_rows], bf16, fp16 or fp32; rows may stand further apart.
        vocabulary: ids from here on are padding of the head and take no part.
        draw: how to draw; None takes the argmax.
        source: [rows, at least vocabulary], what to draw from if not from ``logits``, such as
            logits with penalties; the token's log-probability is still that in ``logits``.
    """
    _check(logits, vocabulary)
    if source is not None:
        check_tensor("source", source, [len(logits), None], LOGITS, logits, contiguous=False)
        if source.shape[1] < vocabulary:
            raise ValueError(f"source must have {vocabulary} columns, got {source.shape[1]}")
    if draw is not None:
        draw.check(logits)
    partials = _tiles(logits, vocabulary, draw, source)
    found = merge(logits, partials, None, vocabulary, BLOCK, draw)
    if draw is not None and draw.filtered:
        draw_filtered(logits, source, vocabulary, draw, found, partials)
    return found


def score(logits: Tensor, vocabulary: int, targets: Tensor) -> Tensor:
    """Log-probabilities of given ids, fp32, of the shape of ``targets``.

    Args:
        logits, vocabulary: as in ``confidence``.
        targets: int64 [rows] or [rows, count]; what is no id below ``vocabulary`` scores NaN, as
            does every target of a row without a distribution.
    """
    _check(logits, vocabulary)
    shape = [len(logits), None][: max(targets.ndim, 1)]
    check_tensor("targets", targets, shape, (torch.int64,), logits)
    found = confidence(logits, vocabulary)
    out = torch.empty(targets.shape, dtype=torch.float32, device=logits.device)
    count = out.numel() // max(len(logits), 1)
    if out.numel():
        score_targets[(len(logits), triton.cdiv(count, SCORE_BLOCK))](
            logits,
            targets,
            found.max_logit,
            found.max_prob,
            out,
            count,
            vocabulary,
            logits.stride(0),
            targets.stride(0),
            block=SCORE_BLOCK,
        )
    return out


def _check(logits: Tensor, vocabulary: int) -> None:
    check_tensor("logits", logits, [None, None], LOGITS, contiguous=False)
    check_device("logits", logits, tile_statistics)
    if not 0 < vocabulary <= logits.shape[1]:
        raise ValueError(
            f"vocabulary must be in 1..{logits.shape[1]}, the head's rows; got {vocabulary}"
        )


def _tiles(logits: Tensor, vocabulary: int, draw: DrawRows | None, source: Tensor | None) -> Tensor:
    """Partials of every tile that has ids, fp32 [PLANES, rows, tiles]."""
    rows, tiles = len(logits), triton.cdiv(vocabulary, BLOCK)
    partials = torch.empty(PLANES, rows, tiles, dtype=torch.float32, device=logits.device)
    columns = (partials,) * 3 if draw is None else (draw.temperature, draw.key, draw.counter)
    fused = draw is not None and source is None
    passes = [(logits, True, fused)]
    if draw is not None and source is not None:
        passes.append((source, False, True))
    for z, statistics, drawing in passes if rows else ():
        tile_statistics[(rows, tiles)](
            z,
            *columns,
            partials,
            rows,
            z.shape[1],
            vocabulary,
            z.stride(0),
            block=BLOCK,
            race=RACE,
            statistics=statistics,
            draw=drawing,
            num_warps=WARPS,
        )
    return partials
