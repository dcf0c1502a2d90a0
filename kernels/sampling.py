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
from kernels.search import keys_of, mass_from, search, value_of
from kernels.types.sampling import DrawRows

CHUNK, WARPS = 8192, 16
LIST_CHUNK, LIST_WARPS = 512, 4  # most lists are shorter
# Low bits of the fp32 pattern that are the same for all values of a type: no need to search them.
SHIFTS = {torch.bfloat16: 16, torch.float16: 12, torch.float32: 0}
ALL = tl.constexpr(2.0**30)  # as a count: beyond any vocabulary


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

    ids: of a list's tokens; the rest as in ``kernels.search`` and ``draw_filtered_rows``.
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
        own = keys_of(x, shift)
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
    ``kernels.search``.
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
        pivot, above = search(source, width, vocabulary, top, scale, goal, True, shift, chunk)
        equals = goal - above
        own = tl.exp2((value_of(pivot, shift) - top) * scale).to(tl.float64)
        kept = mass_from(source, width, vocabulary, top, scale, pivot + 1, shift, chunk)
        kept += equals * own
    elif listed:
        kept = tl.load(totals + row)
    else:
        kept = mass_from(source, width, vocabulary, top, scale, row * 0, shift, chunk)
    if top_p < 1:
        goal = top_p * kept
        key, above = search(source, width, vocabulary, top, scale, goal, False, shift, chunk)
        own = tl.exp2((value_of(key, shift) - top) * scale).to(tl.float64)
        # The token that reaches the goal is in: as many equals as that takes, at least one.
        count = tl.minimum(tl.maximum(tl.ceil((goal - above) / own), 1.0), ALL)
        equals = tl.where(
            key > pivot, count, tl.where(key == pivot, tl.minimum(equals, count), equals)
        )
        pivot = tl.maximum(pivot, key)
    if min_p > 0:
        least = top.to(tl.float64) + temperature * tl.log(min_p)
        bound = least.to(tl.float32)
        key = keys_of(bound, 0).to(tl.int64) + (bound.to(tl.float64) < least).to(tl.int64)
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
