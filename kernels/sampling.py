"""Draws of rows with filters: top-k, then renormalised top-p, then min-p, one program a row.

Nearly always all that the filters keep is in a short list (``kernels.candidates``): then only that
is searched, otherwise the whole row.

In order of likelihood (equals by the lower id) each filter keeps a beginning of the row. So a
filter is a search for the key (a float's bits in order) at which a sum over all likelier tokens
reaches a goal: a count for top-k, a mass for top-p. The search fixes two bits of the key in each
pass over the list, or over logits that lie in the L2 cache: exact, whatever is kept, and no sort.
Sums run in fp32 within a lane and fp64 across lanes. What is kept then races, in one more pass.

A key draws the same token as in ``kernels.reference.sampling``, unless the two best scores lie
within about 1e-5 of each other, or a token's mass within about 1e-7 of a filter's edge.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import candidates
from kernels.candidates import filter_columns, filter_flags, filters_of
from kernels.merge import BIG, LOWEST, ScoredRows, inverse_temperature, load_logits
from kernels.race import arrivals, race_key, words_of_block, words_of_ids
from kernels.types.sampling import DrawRows

CHUNK, WARPS = 8192, 16
LIST_CHUNK, LIST_WARPS = 512, 4  # most lists are shorter
# Low bits of the fp32 pattern that are the same for all values of a type: no need to search them.
SHIFTS = {torch.bfloat16: 16, torch.float16: 12, torch.float32: 0}
ALL = tl.constexpr(2.0**30)  # as a count: beyond any vocabulary


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
            key = _keys(x, shift)
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
def _race(
    source: tl.tensor,
    ids: tl.tensor,
    key: tl.tensor,
    c0: tl.tensor,
    c1: tl.tensor,
    c2: tl.tensor,
    width: tl.tensor,
    vocabulary: tl.tensor,
    top: tl.tensor,
    scale: tl.tensor,
    pivot: tl.tensor,
    equals: tl.tensor,
    shift: tl.constexpr,
    chunk: tl.constexpr,
    listed: tl.constexpr,
) -> tl.tensor:
    """The winner among the keys above ``pivot`` and the first ``equals`` of that key.

    ids: of a list's tokens; the rest as in ``_search`` and ``draw_filtered_rows``.
    """
    soonest = top * 0.0 + float("inf")
    token = vocabulary * 0
    seen = vocabulary * 0
    for start in range(0, vocabulary, chunk):
        place = start + tl.arange(0, chunk)
        x = load_logits(source, place, width, vocabulary)
        if listed:
            n = tl.load(ids + place, mask=place < vocabulary, other=0)
            words = words_of_ids(key, c0, c1, c2, n)
        else:
            n = place
            words = words_of_block(key, c0, c1, c2, start, chunk)
        own = _keys(x, shift)
        equal = (own == pivot.to(tl.uint32)) & (place < vocabulary)
        order = seen + tl.cumsum(equal.to(tl.int32), 0)
        kept = (own > pivot.to(tl.uint32)) | (equal & (order <= equals))
        seen += tl.sum(equal.to(tl.int32), 0)
        time = tl.where(kept, arrivals(x, top, scale, words), float("inf"))
        least = tl.min(time, 0)
        first = tl.min(tl.where(time == least, n, BIG), 0)
        token = tl.where(least < soonest, first, token)
        soonest = tl.minimum(soonest, least)
    return token


@triton.jit(do_not_specialize=("vocabulary",))
def draw_filtered_rows(
    logits: tl.tensor,
    source: tl.tensor,
    temperatures: tl.tensor,
    keys: tl.tensor,
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
    # The filter that keeps least decides: the greatest key, and fewer of its equals.
    pivot = row * 0
    equals = temperature * 0 + ALL
    kept = temperature * 0
    if top_k > 0:
        goal = top_k.to(tl.float64)
        pivot, above = _search(source, width, vocabulary, top, scale, goal, True, shift, chunk)
        equals = goal - above
        own = tl.exp2((_value(pivot, shift) - top) * scale).to(tl.float64)
        kept = _mass_from(source, width, vocabulary, top, scale, pivot + 1, shift, chunk)
        kept += equals * own
    elif listed:
        kept = tl.load(totals + row)
    else:
        kept = _mass_from(source, width, vocabulary, top, scale, row * 0, shift, chunk)
    if top_p < 1:
        goal = top_p * kept
        key, above = _search(source, width, vocabulary, top, scale, goal, False, shift, chunk)
        own = tl.exp2((_value(key, shift) - top) * scale).to(tl.float64)
        # The token that reaches the goal is in: as many equals as that takes, at least one.
        count = tl.minimum(tl.maximum(tl.ceil((goal - above) / own), 1.0), ALL)
        equals = tl.where(
            key > pivot, count, tl.where(key == pivot, tl.minimum(equals, count), equals)
        )
        pivot = tl.maximum(pivot, key)
    if min_p > 0:
        least = top.to(tl.float64) + temperature * tl.log(min_p)
        bound = least.to(tl.float32)
        key = _keys(bound, 0).to(tl.int64) + (bound.to(tl.float64) < least).to(tl.int64)
        key = tl.where(bound < 0, key, key + ((1 << shift) - 1)) >> shift
        equals = tl.where(key > pivot, ALL, equals)
        pivot = tl.maximum(pivot, key)
    race, c0, c1, c2 = race_key(keys, counters, row)
    chosen = _race(
        source,
        ids + row * source_stride,
        race,
        c0,
        c1,
        c2,
        width,
        vocabulary,
        top,
        scale,
        pivot,
        equals.to(tl.int32),
        shift,
        chunk,
        listed,
    )
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
            draw.key,
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
