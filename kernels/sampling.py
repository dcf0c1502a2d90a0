"""Draws of rows with filters: top-k, then renormalised top-p, then min-p, one program a row.

Nearly always all that the filters keep is in a short list (``kernels.candidates``): then only that
is searched, otherwise the whole row. A min-p of ``LEAST`` keeps all: so ``TritonBackend.sample``
draws in order of likelihood without filters, from a list that reaches as far as the uniform does.

In order of likelihood (equals by the lower id) each filter keeps a beginning of the row. So filters
and draw are one search: the key (a float's bits in order) at which a sum over all likelier tokens
reaches a goal: a count for top-k, a mass for top-p, and for the draw the uniform's share of what is
kept. The search fixes two bits of the key in each pass over the list, or over logits that lie in
the L2 cache: exact, whatever is kept, and no sort. Sums run in fp32 within a lane and fp64 across
lanes.

A key draws the same token as in ``kernels.reference.sampling``, unless its uniform falls within
about 1e-7 of the edge between two tokens.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import candidates
from kernels.candidates import KEEPS_ALL, filter_columns, filter_flags, filters_of
from kernels.merge import LOWEST, ScoredRows, inverse_temperature, load_logits
from kernels.philox import keyed_uniform
from kernels.types.sampling import DrawRows

CHUNK, WARPS = 8192, 16
LIST_CHUNK, LIST_WARPS = 512, 4  # most lists are shorter
# Low bits of the fp32 pattern that are the same for all values of a type: no need to search them.
SHIFTS = {torch.bfloat16: 16, torch.float16: 12, torch.float32: 0}
MOST_RANK = tl.constexpr(2.0**30)  # beyond any vocabulary; an fp32 of it may be counted on from


@triton.jit
def _keys(x: tl.tensor, shift: tl.constexpr) -> tl.tensor:
    """Floats as uint32 of the same order; both zeros are one."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    return ((bits ^ ((bits >> 31) | -2147483648)).to(tl.uint32, bitcast=True)) >> shift


@triton.jit
def _value(key: tl.tensor, shift: tl.constexpr) -> tl.tensor:
    """The float of an int64 key."""
    negative = key < (1 << (31 - shift))
    whole = (key << shift) | tl.where(negative, (1 << shift) - 1, 0)
    bits = tl.where(negative, 0xFFFFFFFF - whole, whole ^ 0x80000000)
    return bits.to(tl.uint32).to(tl.float32, bitcast=True)


@triton.jit
def _search(
    source: tl.tensor,
    width: tl.tensor,
    vocabulary: tl.tensor,
    top: tl.tensor,
    scale: tl.tensor,
    goal: tl.tensor,
    counting: tl.constexpr,
    beyond: tl.constexpr,
    shift: tl.constexpr,
    chunk: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The highest key from which on upwards the sum reaches ``goal``, and the sum above that key.

    counting: of tokens, otherwise of exp((x - top) / T). beyond: the sum must exceed the goal.
    shift: low bits that all keys lack. chunk: logits that are read at once.
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
            key = _keys(x, shift)
            mass = sum1 * 0.0 + 1.0 if counting else tl.exp2((x - top) * scale)
            sum1 += tl.where(key >= one.to(tl.uint32), mass, 0.0)
            sum2 += tl.where(key >= two.to(tl.uint32), mass, 0.0)
            sum3 += tl.where(key >= three.to(tl.uint32), mass, 0.0)
        all1 = tl.sum(sum1.to(tl.float64), 0)
        all2 = tl.sum(sum2.to(tl.float64), 0)
        all3 = tl.sum(sum3.to(tl.float64), 0)
        if beyond:
            hit1, hit2, hit3 = all1 > goal, all2 > goal, all3 > goal
        else:
            hit1, hit2, hit3 = all1 >= goal, all2 >= goal, all3 >= goal
        # The lowest key that failed so far is at last the one right above the answer.
        above = tl.where(hit3, above, tl.where(hit2, all3, tl.where(hit1, all2, all1)))
        found = tl.where(hit3, three, tl.where(hit2, two, tl.where(hit1, one, found)))
    return found, above


@triton.jit
def _mass_from(
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
        total += tl.where(_keys(x, shift) >= pivot.to(tl.uint32), mass, 0.0)
    return tl.sum(total.to(tl.float64), 0)


@triton.jit
def _find(
    source: tl.tensor,
    width: tl.tensor,
    vocabulary: tl.tensor,
    key: tl.tensor,
    rank: tl.tensor,
    shift: tl.constexpr,
    chunk: tl.constexpr,
) -> tl.tensor:
    """The id of the token of that key that has ``rank`` others of it before it; or the last one."""
    token = -1
    seen = rank * 0
    for start in range(0, vocabulary, chunk):
        ids = start + tl.arange(0, chunk)
        x = load_logits(source, ids, width, vocabulary)
        equal = (_keys(x, shift) == key.to(tl.uint32)) & (ids < vocabulary)
        count = tl.sum(equal.to(tl.int32), 0)
        if (count > 0) & (seen <= rank):
            order = seen + tl.cumsum(equal.to(tl.int32), 0)
            token = tl.max(tl.where(equal & (order <= rank + 1), ids, -1), 0)
        seen += count
    return token


@triton.jit(do_not_specialize=("vocabulary",))
def draw_filtered_rows(
    logits: tl.tensor,
    source: tl.tensor,
    temperatures: tl.tensor,
    seeds: tl.tensor,
    counters: tl.tensor,
    top_ks: tl.tensor,
    top_ps: tl.tensor,
    min_ps: tl.tensor,
    peaks: tl.tensor,
    probs: tl.tensor,
    argmax: tl.tensor,
    valid: tl.tensor,
    token: tl.tensor,
    logprob: tl.tensor,
    ids: tl.tensor,
    sizes: tl.tensor,
    totals: tl.tensor,
    width: tl.tensor,
    vocabulary: tl.tensor,
    stride: tl.tensor,
    source_stride: tl.tensor,
    has_top_k: tl.constexpr,
    has_top_p: tl.constexpr,
    has_min_p: tl.constexpr,
    shift: tl.constexpr,
    chunk: tl.constexpr,
    listed: tl.constexpr,
) -> None:
    """One row with filters, others end at once. Grid: (rows,). Rewrites ``token``, ``logprob``.

    listed: those with a list, or those without. The other constants are those of ``filters_of`` and
    ``_search``.
    """
    row = tl.program_id(0).to(tl.int64)
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
    size = tl.load(sizes + row)
    if (size > 0) != listed:
        return
    if listed:
        vocabulary = size
    scale = inverse_temperature(temperatures, row)
    source += row * source_stride
    peak = tl.full((chunk,), float("-inf"), tl.float32)
    for start in range(0, vocabulary, chunk):
        x = load_logits(source, start + tl.arange(0, chunk), width, vocabulary)
        peak = tl.maximum(peak, x)
    top = tl.maximum(tl.max(peak, 0), LOWEST)
    kept = temperature * 0
    if top_k > 0:
        goal = top_k.to(tl.float64)
        key, above = _search(source, width, vocabulary, top, scale, goal, True, False, shift, chunk)
        own = tl.exp2((_value(key, shift) - top) * scale).to(tl.float64)
        kept = _mass_from(source, width, vocabulary, top, scale, key + 1, shift, chunk)
        kept += (goal - above) * own
    elif listed:
        kept = tl.load(totals + row)
    else:
        kept = _mass_from(source, width, vocabulary, top, scale, row * 0, shift, chunk)
    if top_p < 1:
        goal = top_p * kept
        key, above = _search(
            source, width, vocabulary, top, scale, goal, False, False, shift, chunk
        )
        own = tl.exp2((_value(key, shift) - top) * scale).to(tl.float64)
        # The token that reaches the goal is in: as many equals as that takes, at least one.
        equals = tl.maximum(tl.ceil((goal - above) / own), 1.0)
        kept = tl.minimum(kept, above + equals * own)
    if min_p > 0:
        least = top.to(tl.float64) + temperature * tl.log(min_p)
        bound = least.to(tl.float32)
        key = _keys(bound, 0).to(tl.int64) + (bound.to(tl.float64) < least).to(tl.int64)
        key = tl.where(bound < 0, key, key + ((1 << shift) - 1)) >> shift
        mass = _mass_from(source, width, vocabulary, top, scale, key, shift, chunk)
        # A list that a draw without filters gets need not hold all that is kept.
        kept = tl.where(min_p > KEEPS_ALL, tl.minimum(kept, mass), kept)
    goal = keyed_uniform(seeds, counters, row) * kept
    key, above = _search(source, width, vocabulary, top, scale, goal, False, True, shift, chunk)
    own = tl.exp2((_value(key, shift) - top) * scale).to(tl.float64)
    rank = tl.minimum(tl.maximum((goal - above) / own, 0.0), MOST_RANK).to(tl.int32)
    chosen = tl.maximum(_find(source, width, vocabulary, key, rank, shift, chunk), 0)
    if listed:
        chosen = tl.load(ids + row * source_stride + chosen)
    x = tl.load(logits + row * stride + chosen).to(tl.float32)
    tl.store(token + row, chosen.to(tl.int64))
    best = tl.log(tl.load(probs + row))
    # A stored logit may have been rounded up above the maximum that was not.
    lead = tl.minimum(x - tl.load(peaks + row), 0.0)
    lead = tl.where(chosen == tl.load(argmax + row), 0.0, lead)
    tl.store(logprob + row, lead + best)


def draw_filtered(
    logits: Tensor,
    source: Tensor | None,
    vocabulary: int,
    draw: DrawRows,
    found: ScoredRows,
    partials: Tensor,
) -> None:
    """Draw again in rows with filters; rewrites their ``token`` and ``logprob`` in ``found``.

    Arguments have been checked: see ``kernels.confidence.confidence``. ``partials``: of the tiles,
    with what a draw needs.
    """
    if not len(logits):
        return
    source = logits if source is None else source
    valid = found.valid.view(torch.int8)
    listed = candidates.gather(source, partials, vocabulary, draw, valid)
    for given, in_list, chunk, warps in (
        (listed.values, True, LIST_CHUNK, LIST_WARPS),
        (source, False, CHUNK, WARPS),
    ):
        draw_filtered_rows[(len(logits),)](
            logits,
            given,
            draw.temperature,
            draw.seed,
            draw.counter,
            *filter_columns(draw),
            found.max_logit,
            found.max_prob,
            found.argmax,
            valid,
            found.token,
            found.logprob,
            listed.ids,
            listed.sizes,
            listed.total,
            given.shape[1],
            vocabulary,
            logits.stride(0),
            given.stride(0),
            **filter_flags(draw),
            shift=SHIFTS[source.dtype],
            chunk=chunk,
            listed=in_list,
            num_warps=warps,
        )
