"""Long spans over a paged prefix: one program a query block, all of its keys in one pass.

Keys before the diagonal need no mask: every query of the block sees them, and all are written.
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
)


@triton.jit(do_not_specialize=_INTEGERS)
def prefill_kernel(
    query: tl.tensor,
    arena: tl.tensor,
    table: tl.tensor,
    starts: tl.tensor,
    contexts: tl.tensor,
    out: tl.tensor,
    slots: tl.tensor,
    slab_rows: tl.tensor,
    block_rows: tl.tensor,
    plane_rows: tl.tensor,
    layer_rows: tl.tensor,
    table_width: tl.tensor,
    sequences: tl.tensor,
    rows: tl.tensor,
    scale: tl.tensor,
    group: tl.constexpr,
    head_dim: tl.constexpr,
    page: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_q: tl.constexpr,
    low: tl.constexpr,
    high: tl.constexpr,
    lanes: tl.constexpr,
    clear: tl.constexpr,
    upcast: tl.constexpr,
) -> None:
    """Grid: (query blocks, kv_heads), an upper bound; a program without work returns."""
    packed: tl.constexpr = block_q * group
    kv_head, kv_heads = tl.program_id(1), tl.num_programs(1)
    programs = tl.num_programs(0)
    program = programs - 1 - tl.program_id(0)  # the last blocks have the most keys: they go first
    if clear:
        clear_padding(
            out,
            starts,
            sequences,
            rows,
            program,
            programs,
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
    context = tl.load(contexts + sequence)
    before = context - span

    lane = tl.arange(0, block_m)
    column = tl.arange(0, head_dim)
    own = block * block_q + lane // group
    real = (lane < packed) & (own < span)
    head = ((begin + own) * kv_heads + kv_head).to(tl.int64) * group + lane % group
    q_at = query + head[:, None] * head_dim + column[None, :]
    q = tl.load(q_at, mask=real[:, None], other=0.0)
    if upcast:
        q = q.to(tl.float32)
    last = tl.where(real, before + own, -1)
    plane = layer_rows + kv_head * page
    blocks = table + sequence.to(tl.int64) * table_width
    maximum = tl.full([block_m], float("-inf"), tl.float32)
    total = tl.zeros([block_m], tl.float32)
    mixed = tl.zeros([block_m, head_dim], tl.float32)
    held = tl.load(blocks)
    seen_by_all = (before + block * block_q + 1) // block_n * block_n
    for start in range(0, seen_by_all, block_n):
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
            False,
            upcast,
        )
    end = tl.minimum(context, before + (block + 1) * block_q)
    for start in range(seen_by_all, end, block_n):
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
    mixed = mixed / tl.where(total > 0.0, total, 1.0)[:, None]
    out_at = out + head[:, None] * head_dim + column[None, :]
    tl.store(out_at, mixed.to(out.dtype.element_ty), mask=real[:, None])
