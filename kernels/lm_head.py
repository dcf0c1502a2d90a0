"""The LM head with the confidence in its epilogue: ``hidden[M, D] @ weight[head_rows, D]^T``.

The statistics come from the fp32 sums, which rounded logits would move by up to a tenth of a nat,
and the logits need not be stored at all (after cut cross-entropy, Wijmans et al., and fused linear
entropy). A tile is ids first: they fill the long side of the matrix instruction, rows of ``hidden``
the short one, padded. One configuration serves M <= 16: there a row's result is bitwise the same
whatever its neighbours are. ``kernels.merge`` makes the tiles' partials the row's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

from kernels.checks import check_device, check_tensor
from kernels.merge import (
    BIG,
    FLOOR,
    HEAD_PLANES,
    LOG2E,
    LOGITS,
    LOWEST,
    ScoredRows,
    inverse_temperature,
    merge,
)
from kernels.race import arrivals, race_key, words_of_tile
from kernels.sampling import draw_filtered
from kernels.types.sampling import DrawRows

BLOCK_N = 128  # ids a tile


class Config(NamedTuple):
    """Of one range of M: rows and depth of a tile, warps, stages."""

    rows: int
    depth: int
    warps: int
    stages: int


# Two programs of the first share an SM (and of the second, if it stores nothing): one's epilogue
# hides under the other's loads.
CONFIGS = (Config(16, 128, 4, 3), Config(64, 64, 8, 4), Config(128, 64, 8, 4))


def config_of(rows: int) -> Config:
    """The first that holds all rows; many rows take several tiles of the last."""
    return next((c for c in CONFIGS if rows <= c.rows), CONFIGS[-1])


@triton.jit(do_not_specialize=("rows", "vocabulary"))
def head_statistics(
    hidden: tl.tensor,
    weight: tl.tensor,
    logits: tl.tensor,
    temperatures: tl.tensor,
    keys: tl.tensor,
    counters: tl.tensor,
    partials: tl.tensor,
    firsts: tl.tensor,
    rows: tl.tensor,
    depth: tl.tensor,
    head_rows: tl.tensor,
    vocabulary: tl.tensor,
    hidden_stride: tl.tensor,
    weight_stride: tl.tensor,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    even_k: tl.constexpr,
    store: tl.constexpr,
    draw: tl.constexpr,
    upcast: tl.constexpr,
) -> None:
    """``block_n`` ids of ``block_m`` rows. Grid: (tiles of rows, tiles of ids).

    Programs of the same ids are neighbours and share the weights. ``partials`` is fp32
    [HEAD_PLANES, rows, tiles], ``firsts`` int32 [rows, tiles].

    even_k: whether ``block_k`` divides ``depth``. store: whether to write ``logits`` [rows,
    head_rows]. draw: whether to store what a draw from them needs. upcast: where a product of
    half-precision operands is not to be had (the interpreter).
    """
    tile = tl.program_id(1)
    tiles = tl.num_programs(1)
    m = tl.program_id(0) * block_m + tl.arange(0, block_m)
    ids = tile * block_n + tl.arange(0, block_n)
    k = tl.arange(0, block_k)
    # Rows past the end repeat the last one: no mask in the loop, and nothing outside is read.
    w_at = weight + tl.minimum(ids, head_rows - 1).to(tl.int64)[:, None] * weight_stride
    h_at = hidden + tl.minimum(m, rows - 1).to(tl.int64)[None, :] * hidden_stride
    x = tl.zeros((block_n, block_m), tl.float32)
    for start in range(0, depth, block_k):
        at = start + k
        if even_k:
            w = tl.load(w_at + at[None, :])
            h = tl.load(h_at + at[:, None])
        else:
            w = tl.load(w_at + at[None, :], mask=at[None, :] < depth, other=0.0)
            h = tl.load(h_at + at[:, None], mask=at[:, None] < depth, other=0.0)
        if upcast:
            w, h = w.to(tl.float32), h.to(tl.float32)
        x = tl.dot(w, h, x, input_precision="ieee")
    ends = (tile + 1) * block_n > vocabulary
    row = m.to(tl.int64)
    place = partials + row * tiles + tile
    plane = rows.to(tl.int64) * tiles
    here = m < rows
    if store:
        z = x.to(logits.dtype.element_ty)
        spot = logits + row[None, :] * head_rows + ids[:, None]
        tl.store(spot, z, mask=here[None, :] & (ids[:, None] < head_rows))
        if draw:  # from what is stored, as the statistics of stored logits would
            z = z.to(tl.float32)
            if ends:
                z = tl.where(ids[:, None] < vocabulary, z, float("-inf"))
            top = tl.max(z, 0)
            at = tl.minimum(m, rows - 1)
            scale = inverse_temperature(temperatures, at)
            key, c0, c1, c2 = race_key(keys, counters, at)
            words = words_of_tile(key, c0, c1, c2, tile * block_n, block_n, block_m)
            time = arrivals(z, top[None, :], scale[None, :], words)
            greedy = tl.load(temperatures + at) <= 0
            time = tl.where(greedy[None, :], top[None, :] - z, time)
            soonest = tl.min(time, 0)
            token = tl.min(tl.where(time == soonest[None, :], ids[:, None], BIG), 0)
            tl.store(place + 3 * plane, soonest, mask=here)
            tl.store(place + 4 * plane, top, mask=here)
            tl.store(place + 5 * plane, token.to(tl.float32, bitcast=True), mask=here)
    if ends:
        x = tl.where(ids[:, None] < vocabulary, x, float("-inf"))
    peak = tl.max(x, 0)
    first = tl.min(tl.where(x == peak[None, :], ids[:, None], BIG), 0)
    x = tl.where(ids[:, None] == first[None, :], float("-inf"), x)
    d = x - tl.maximum(peak, LOWEST)[None, :]
    d = tl.maximum(d, FLOOR, propagate_nan=tl.PropagateNan.ALL)
    e = tl.exp2(d * LOG2E)
    rest = tl.sum(e, 0)
    own = tl.exp2(tl.maximum(peak - peak, 0.0, propagate_nan=tl.PropagateNan.ALL))
    own = tl.where(peak == float("-inf"), 0.0, own)  # 1, or NaN where the maximum is no number
    tl.store(place, peak, mask=here)
    tl.store(place + plane, rest + own, mask=here)
    tl.store(place + 2 * plane, tl.sum(e * d, 0), mask=here)
    tl.store(place + 6 * plane, tl.max(x, 0), mask=here)
    tl.store(place + 7 * plane, rest + (own - own), mask=here)
    tl.store(firsts + row * tiles + tile, first, mask=here)


def lm_head(
    hidden: Tensor,
    weight: Tensor,
    vocabulary: int,
    draw: DrawRows | None = None,
    store: torch.dtype | None = None,
) -> tuple[ScoredRows, Tensor | None]:
    """Statistics and a token of each row, and its logits [M, head_rows] if they are wanted.

    Args:
        hidden: [M, D], bf16, fp16 or fp32; rows may stand further apart.
        weight: [head_rows, D], of the same type; rows may stand further apart.
        vocabulary: ids from here on are padding of the head and take no part.
        draw: how to draw, from the stored logits; None takes the argmax of the fp32 sums.
        store: type of the stored logits; None: they are not stored. ``draw`` needs them. Beside
            bf16 the log-probability of a token that is not the argmax is that of its rounded logit.
    """
    check_tensor("hidden", hidden, [None, None], LOGITS, contiguous=False)
    check_device("hidden", hidden, head_statistics)
    rows, depth = hidden.shape
    if not depth:
        raise ValueError("hidden must have columns, got none")
    check_tensor("weight", weight, [None, depth], (hidden.dtype,), hidden, contiguous=False)
    head_rows = len(weight)
    if not 0 < vocabulary <= head_rows:
        raise ValueError(f"vocabulary must be in 1..{head_rows}, the head's rows; got {vocabulary}")
    if store is not None and store not in LOGITS:
        raise ValueError(f"store must be bfloat16, float16, float32 or None, got {store}")
    if draw is not None:
        if store is None:
            raise ValueError("store must be a type where draw is given: it reads the logits back")
        draw.check(hidden)
    new, tiles = hidden.new_empty, triton.cdiv(head_rows if store else vocabulary, BLOCK_N)
    partials = new(HEAD_PLANES, rows, tiles, dtype=torch.float32)
    firsts = new(rows, tiles, dtype=torch.int32)
    logits = new(rows, head_rows, dtype=store) if store is not None else None
    if rows:
        _launch(hidden, weight, logits, vocabulary, draw, partials, firsts)
    read = hidden if logits is None else logits
    found = merge(read, partials, firsts, vocabulary, BLOCK_N, draw)
    if logits is not None and draw is not None and draw.filtered:
        draw_filtered(logits, None, vocabulary, draw, found, partials)
    return found, logits


def _launch(
    hidden: Tensor,
    weight: Tensor,
    logits: Tensor | None,
    vocabulary: int,
    draw: DrawRows | None,
    partials: Tensor,
    firsts: Tensor,
) -> None:
    (rows, depth), c = hidden.shape, config_of(len(hidden))
    columns = (partials,) * 3 if draw is None else (draw.temperature, draw.key, draw.counter)
    head_statistics[(triton.cdiv(rows, c.rows), firsts.shape[1])](
        hidden,
        weight,
        partials if logits is None else logits,
        *columns,
        partials,
        firsts,
        rows,
        depth,
        len(weight),
        vocabulary,
        hidden.stride(0),
        weight.stride(0),
        block_m=c.rows,
        block_n=BLOCK_N,
        block_k=c.depth,
        even_k=depth % c.depth == 0,
        store=logits is not None,
        draw=draw is not None,
        upcast=bool(knobs.runtime.interpret),
        num_warps=c.warps,
        num_stages=c.stages,
    )
