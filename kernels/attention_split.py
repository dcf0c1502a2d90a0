"""Short spans over long contexts: keys are split into chunks, one program each, and merged.

A chunk is a number of tokens that depends on nothing but the sequence itself: ``chunk`` times its
query blocks, and times what keeps its splits within ``most``. Other sequences change neither the
chunks nor the order in which they are merged, so they cannot change a bit of the result.

Partials of a packed row (see attention_tile) are fp32: the maximum and the sum of the weights,
``stats`` [blocks, kv_heads, packed, 2, splits], and ``parts`` [.., packed, splits, head_dim].
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.attention_tile import clear_padding, fold, locate

_INTEGERS = (
    "slots",
    "slab_rows",
    "block_rows",
    "plane_rows",
    "layer_rows",
    "table_width",
    "sequences",
    "rows",
    "splits",
)


@triton.jit
def _chunk_tokens(
    context: tl.tensor,
    span: tl.tensor,
    chunk: tl.constexpr,
    most: tl.constexpr,
    block_q: tl.constexpr,
) -> tl.tensor:
    """Tokens of one split of a sequence. More query blocks make longer, so fewer, chunks."""
    least = chunk * ((span + block_q - 1) // block_q)
    return least * ((context + least * most - 1) // (least * most))


@triton.jit(do_not_specialize=_INTEGERS)
def split_kernel(
    query: tl.tensor,
    arena: tl.tensor,
    table: tl.tensor,
    starts: tl.tensor,
    contexts: tl.tensor,
    stats: tl.tensor,
    parts: tl.tensor,
    slots: tl.tensor,
    slab_rows: tl.tensor,
    block_rows: tl.tensor,
    plane_rows: tl.tensor,
    layer_rows: tl.tensor,
    table_width: tl.tensor,
    sequences: tl.tensor,
    splits: tl.tensor,
    scale: tl.tensor,
    group: tl.constexpr,
    head_dim: tl.constexpr,
    page: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_q: tl.constexpr,
    chunk: tl.constexpr,
    most: tl.constexpr,
    low: tl.constexpr,
    high: tl.constexpr,
    lanes: tl.constexpr,
    upcast: tl.constexpr,
) -> None:
    """Grid: (query blocks, kv_heads, splits), all upper bounds; a program without work returns."""
    packed: tl.constexpr = block_q * group
    program, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    sequence, block = locate(program, starts, sequences, low, high, block_q, lanes)
    if sequence >= sequences:
        return
    begin = tl.load(starts + sequence)
    span = tl.load(starts + sequence + 1) - begin
    if (span < low) | (span > high):
        return
    context = tl.load(contexts + sequence)
    before = context - span  # keys that the first query of the span does not bring itself
    size = _chunk_tokens(context, span, chunk, most, block_q)
    end = tl.minimum(context, before + (block + 1) * block_q)
    if split * size >= end:
        return

    lane = tl.arange(0, block_m)
    column = tl.arange(0, head_dim)
    own = block * block_q + lane // group
    real = (lane < packed) & (own < span)
    kv_heads = tl.num_programs(1)
    head = ((begin + own) * kv_heads + kv_head).to(tl.int64) * group + lane % group
    q_at = query + head[:, None] * head_dim + column[None, :]
    q = tl.load(q_at, mask=real[:, None], other=0.0)
    if upcast:
        q = q.to(tl.float32)
    last = tl.where(real, before + own, -1)
    plane = layer_rows + kv_head * page
    maximum = tl.full([block_m], float("-inf"), tl.float32)
    total = tl.zeros([block_m], tl.float32)
    mixed = tl.zeros([block_m, head_dim], tl.float32)
    blocks = table + sequence.to(tl.int64) * table_width
    held = tl.load(blocks + split * size // page)
    for start in range(split * size, tl.minimum(end, (split + 1) * size), block_n):
        held, maximum, total, mixed = fold(
            q,
            held,
            maximum,
            total,
            mixed,
            arena,
            blocks,
            start,
            context,
            last,
            plane,
            slots,
            slab_rows,
            block_rows,
            plane_rows,
            scale,
            page,
            head_dim,
            block_n,
            True,
            upcast,
        )

    place = (program * kv_heads + kv_head).to(tl.int64) * packed + lane
    tl.store(stats + place * 2 * splits + split, maximum, mask=real)
    tl.store(stats + (place * 2 + 1) * splits + split, total, mask=real)
    part_at = parts + (place * splits + split)[:, None] * head_dim + column[None, :]
    tl.store(part_at, mixed, mask=real[:, None])


@triton.jit(do_not_specialize=_INTEGERS)
def merge_kernel(
    stats: tl.tensor,
    parts: tl.tensor,
    starts: tl.tensor,
    contexts: tl.tensor,
    out: tl.tensor,
    sequences: tl.tensor,
    rows: tl.tensor,
    splits: tl.tensor,
    group: tl.constexpr,
    head_dim: tl.constexpr,
    block_q: tl.constexpr,
    chunk: tl.constexpr,
    most: tl.constexpr,
    low: tl.constexpr,
    high: tl.constexpr,
    lanes: tl.constexpr,
    tile: tl.constexpr,
    clear: tl.constexpr,
) -> None:
    """Grid: (query blocks, kv_heads, packed rows). Splits are added in their own order."""
    packed: tl.constexpr = block_q * group
    program, kv_head, lane = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_heads = tl.num_programs(1)
    if clear:
        head_rows = tl.num_programs(0) * packed
        clear_padding(
            out,
            starts,
            sequences,
            rows,
            program * packed + lane,
            head_rows,
            kv_head * group,
            kv_heads * group,
            group,
            head_dim,
        )
    sequence, block = locate(program, starts, sequences, low, high, block_q, lanes)
    if sequence >= sequences:
        return
    begin = tl.load(starts + sequence)
    span = tl.load(starts + sequence + 1) - begin
    own = block * block_q + lane // group
    if (span < low) | (span > high) | (own >= span):
        return
    context = tl.load(contexts + sequence)
    size = _chunk_tokens(context, span, chunk, most, block_q)
    end = tl.minimum(context, context - span + (block + 1) * block_q)
    # Never more than there is room for, even if the host's bound of the contexts was wrong.
    used = tl.minimum((end + size - 1) // size, splits)

    place = (program * kv_heads + kv_head).to(tl.int64) * packed + lane
    index = tl.arange(0, most)
    maxima = tl.load(stats + place * 2 * splits + index, mask=index < used, other=float("-inf"))
    totals = tl.load(stats + (place * 2 + 1) * splits + index, mask=index < used, other=0.0)
    top = tl.max(maxima, 0)
    top = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(tl.exp2(maxima - top) * totals, 0)
    column = tl.arange(0, head_dim)
    mixed = tl.zeros([head_dim], tl.float32)
    for first in range(0, used, tile):
        near = first + tl.arange(0, tile)
        here = near < used
        weight = tl.load(stats + place * 2 * splits + near, mask=here, other=float("-inf"))
        part_at = parts + (place * splits + near)[:, None] * head_dim + column[None, :]
        part = tl.load(part_at, mask=here[:, None], other=0.0)
        mixed += tl.sum(part * tl.exp2(weight - top)[:, None], 0)
    mixed = mixed / tl.where(total > 0.0, total, 1.0)
    head = ((begin + own) * kv_heads + kv_head).to(tl.int64) * group + lane % group
    tl.store(out + head * head_dim + column, mixed.to(out.dtype.element_ty))
