"""What both attention kernels do: find their work, and fold one tile of keys into a softmax.

A KV head's ``group`` query heads and ``block_q`` queries of one sequence are packed into the rows
of one product: packed row ``i`` is query ``i // group`` and head ``i % group``. Such a query block
belongs to one KV head; blocks of a sequence are numbered from its first query on.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def locate(
    program: tl.tensor,
    starts: tl.tensor,
    sequences: tl.tensor,
    low: tl.constexpr,
    high: tl.constexpr,
    block_q: tl.constexpr,
    lanes: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The sequence of a program and its query block there, counting spans low..high only.

    The sequence is ``sequences`` or above where there is no work left. ``lanes``: a power of two,
    at least ``sequences``.
    """
    if high == 1:  # one block a sequence: nothing to look for
        sequence = program
        block = 0
    else:
        index = tl.arange(0, lanes)
        first = tl.load(starts + index, mask=index < sequences, other=0)
        after = tl.load(starts + index + 1, mask=index < sequences, other=0)
        span = after - first
        blocks = tl.where((span >= low) & (span <= high), (span + block_q - 1) // block_q, 0)
        ends = tl.cumsum(blocks, 0)
        sequence = tl.sum((ends <= program).to(tl.int32), 0)
        block = program - tl.sum(tl.where(index < sequence, blocks, 0), 0)
    return sequence, block


@triton.jit
def clear_padding(
    out: tl.tensor,
    starts: tl.tensor,
    sequences: tl.tensor,
    rows: tl.tensor,
    program: tl.tensor,
    programs: tl.tensor,
    first_head: tl.tensor,
    heads: tl.tensor,
    group: tl.constexpr,
    head_dim: tl.constexpr,
) -> None:
    """Zeros in rows of the batch that belong to no sequence, shared out among the programs.

    Each program clears ``group`` heads from ``first_head`` on of every ``programs``-th such row.
    """
    lane = tl.arange(0, 16)  # group is at most 16
    column = tl.arange(0, head_dim)
    zeros = tl.zeros([16, head_dim], tl.float32).to(out.dtype.element_ty)
    used = tl.load(starts + sequences)
    for row in range(used + program, rows, programs):
        head = (row * heads + first_head + lane).to(tl.int64)
        at = out + head[:, None] * head_dim + column[None, :]
        tl.store(at, zeros, mask=(lane < group)[:, None])


@triton.jit
def fold(
    query: tl.tensor,
    block: tl.tensor,
    maximum: tl.tensor,
    total: tl.tensor,
    mixed: tl.tensor,
    arena: tl.tensor,
    table: tl.tensor,
    start: tl.tensor,
    context: tl.tensor,
    last: tl.tensor,
    plane: tl.tensor,
    slots: tl.tensor,
    slab_rows: tl.tensor,
    block_rows: tl.tensor,
    plane_rows: tl.tensor,
    scale: tl.tensor,
    page: tl.constexpr,
    head_dim: tl.constexpr,
    block_n: tl.constexpr,
    masked: tl.constexpr,
    upcast: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Online softmax over the ``block_n`` keys from position ``start`` on.

    Returns the next tile's first block id, then ``maximum``, ``total`` and ``mixed`` brought on.

    Args:
        query: [block_m, head_dim].
        block: id of the tile's first block. It is loaded a tile ahead: were it loaded here, keys
            could not be in flight while the tile before them is computed.
        maximum: [block_m] fp32, of the scores so far, in powers of two.
        total: [block_m] fp32, sum of weights so far, relative to ``maximum``; ``mixed`` likewise.
        table: the sequence's block ids.
        context: keys that exist; memory behind them may hold anything, NaN too.
        last: [block_m], the last position that each row sees; below 0: none.
        plane: arena row of this layer's and head's keys within a block.
        scale: of the products, times log2(e).
        masked: False only if every row sees every key of the tile.
        upcast: where a product of half-precision operands is not to be had (the interpreter).
    """
    position = start + tl.arange(0, block_n)
    column = tl.arange(0, head_dim)
    if page % block_n == 0:  # one block holds the whole tile
        held = block
        block = tl.load(table + (start + block_n) // page, mask=start + block_n < context, other=0)
        inside = start % page + tl.arange(0, block_n)
    else:
        held = tl.load(table + position // page, mask=position < context, other=0)
        inside = position % page
    slab = held // slots
    first = slab.to(tl.int64) * slab_rows + (held - slab * slots).to(tl.int64) * block_rows
    row = first + plane + inside
    key_at = arena + row[None, :] * head_dim + column[:, None]
    value_at = arena + (row + plane_rows)[:, None] * head_dim + column[None, :]
    if masked:  # values too: a weight of zero does not silence a NaN
        written = position < context
        key = tl.load(key_at, mask=written[None, :], other=0.0)
        value = tl.load(value_at, mask=written[:, None], other=0.0)
    else:
        key = tl.load(key_at)
        value = tl.load(value_at)
    if upcast:
        key = key.to(tl.float32)
    # tf32x3: fp32 operands in three products on tensor cores; says nothing of half precision
    score = tl.dot(query, key, input_precision="tf32x3") * scale
    if masked:
        score = tl.where(position[None, :] <= last[:, None], score, float("-inf"))
    top = tl.maximum(maximum, tl.max(score, 1))
    # A row that has seen nothing yet keeps -inf, but must not compute inf - inf.
    shift = tl.where(top == float("-inf"), 0.0, top)
    weight = tl.exp2(score - shift[:, None])
    decay = tl.exp2(maximum - shift)
    total = total * decay + tl.sum(weight, 1)
    weight = weight.to(arena.dtype.element_ty)
    if upcast:
        weight = weight.to(tl.float32)
        value = value.to(tl.float32)
    mixed = tl.dot(weight, value, mixed * decay[:, None], input_precision="tf32x3")
    return block, top, total, mixed
