"""Checks of the ops on the arena: rotation with KV writes, attention, copies of blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bench.gpu_quick.checks.check import Check, Outputs
from bench.gpu_quick.checks.tensors import DTYPE, Maker, taken
from kernels import ops
from kernels.ops import AttentionPlan, KVLayout
from kernels.reference.layers import rope_tables

PAGE = 64
EPS = 1e-6
_LAYERS, _LAYER = 2, 1
_ROUNDED = (2**-6, 2e-2)
_MIXED = (2**-6, 5e-3)  # a mean over many values, which is small
_EXACT = (0.0, 0.0)
# Queries and keys of each sequence: decodes, short spans, one that is longer.
DECODES = ((1, 1), (1, 63), (1, 200), (1, 577))
SPANS = ((1, 64), (2, 65), (17, 130), (64, 64), (70, 300), (5, 133))


def _layout(make: Maker) -> KVLayout:
    """A layout with three blocks per slab, and some rows at its end that belong to none."""
    s = make.shape
    block = _LAYERS * 2 * s.kv_heads * PAGE
    return KVLayout(_LAYERS, s.kv_heads, s.head_dim, PAGE, 3, 3 * block + PAGE)


def rope_kvs(make: Maker) -> Iterator[Check]:
    """Checks with a bias (Qwen2), and with norms of queries and keys (Qwen3)."""
    s, rows = make.shape, 5
    layout, width = _layout(make), (s.heads + 2 * s.kv_heads) * s.head_dim
    qkv, bias = make.normal(rows, width), make.normal(width)
    pair = make.normal(s.head_dim), make.normal(s.head_dim)
    rope = rope_tables(4 * PAGE, s.head_dim, 1e6).to(make.device)
    positions, slots = make.shuffled(4 * PAGE)[:rows], make.shuffled(4 * PAGE)[:rows]
    for name, added, norms in (("bias", bias, None), ("norms", None, pair)):
        yield _rope_kv(name, make, layout, qkv, added, rope, positions, slots, norms)


def _rope_kv(
    name: str,
    make: Maker,
    layout: KVLayout,
    qkv: Tensor,
    bias: Tensor | None,
    rope: Tensor,
    positions: Tensor,
    slots: Tensor,
    norms: tuple[Tensor, Tensor] | None,
) -> Check:
    """Outputs: rotated queries, the keys and values written to the arena, and the rest of it."""
    kv_heads, width = layout.kv_heads, layout.head_dim

    def run(rows: Sequence[int]) -> Outputs:
        arena = torch.zeros((2 * layout.slab_rows, width), dtype=qkv.dtype, device=qkv.device)
        count = len(rows)
        chosen = taken(slots, rows)
        plan = _plan(make, layout, [(1, 1)] * count, chosen)
        query = make.backend.rope_kv(
            taken(qkv, rows), bias, rope, taken(positions, rows), arena, plan, _LAYER, norms, EPS
        )
        at = _places(layout, chosen)
        both = [(at + p * layout.plane_rows).to(arena.device) for p in (0, 1)]
        key, value = (arena.index_select(0, place).view(count, kv_heads, width) for place in both)
        elsewhere = arena.index_fill(0, torch.cat(both), 0.0).abs().sum()
        return query, key, value, elsewhere.repeat(count)

    def expected() -> Outputs:
        x = qkv.cpu().double()
        x = (x if bias is None else x + bias.cpu().double()).view(len(x), -1, width)
        turned, value = x[:, :-kv_heads], x[:, -kv_heads:]
        heads = turned.shape[1] - kv_heads
        if norms is not None:
            scale = torch.rsqrt(turned.pow(2).mean(-1, keepdim=True) + EPS)
            weight = torch.stack([norms[0].cpu()] * heads + [norms[1].cpu()] * kv_heads)
            turned = turned * scale * weight.double()
        cosine, sine = rope.cpu().double()[:, positions.cpu().long()][:, :, None]
        first, second = turned.chunk(2, -1)
        turned = turned * cosine + torch.cat([-second, first], -1) * sine
        nothing = torch.zeros(len(x), dtype=torch.float64)
        return turned[:, :heads], turned[:, heads:], value, nothing

    near = (_ROUNDED, _ROUNDED, _ROUNDED, _EXACT)
    return Check("rope_kv", name, run, expected, len(qkv), near)


def _places(layout: KVLayout, slots: Tensor) -> Tensor:
    """Arena rows of the keys of each slot's heads in ``_LAYER``, on the host, flat."""
    slot = slots.cpu().long()
    block = slot // layout.block_tokens
    first = layout.first_row(block) + 2 * _LAYER * layout.plane_rows + slot % layout.block_tokens
    return (first[:, None] + torch.arange(layout.kv_heads) * layout.block_tokens).flatten()


def _plan(
    make: Maker,
    layout: KVLayout,
    sizes: Sequence[tuple[int, int]],
    slots: Tensor,
    table: Tensor | None = None,
) -> AttentionPlan:
    starts = [0]
    for span, _ in sizes:
        starts.append(starts[-1] + span)
    contexts = [context for _, context in sizes]
    if table is None:
        table = make.integers(range(len(sizes))).view(-1, 1)
    work = ops.Work.of(starts, contexts)
    splits = ops.Splits.of_lane(64, layout.kv_heads)  # fixed per lane, not by this batch
    return AttentionPlan(
        layout, table, make.integers(starts), make.integers(contexts), slots, work, splits
    )


def attentions(make: Maker) -> Iterator[Check]:
    """Checks of decodes alone, and of decodes mixed with spans."""
    yield _attention("decode", make, DECODES)
    yield _attention("spans", make, SPANS)


def _attention(name: str, make: Maker, sizes: Sequence[tuple[int, int]]) -> Check:
    s, layout = make.shape, _layout(make)
    each = [-(-context // PAGE) for _, context in sizes]
    blocks = make.shuffled(sum(each))
    table = torch.zeros(len(sizes), max(each), dtype=torch.int32)
    for row, ids in enumerate(blocks.cpu().split(each)):
        table[row, : len(ids)] = ids
    rows = -(-sum(each) // layout.slots) * layout.slab_rows
    # Rows that no sequence may see hold NaN: ends of pages, other layers, gaps between slabs.
    arena = torch.full((rows, s.head_dim), torch.nan, dtype=DTYPE, device=make.device)
    places = [_seen(layout, table[row], n) for row, (_, n) in enumerate(sizes)]
    keys = torch.cat([place.flatten() for place in places]).to(make.device)
    for at in (keys, keys + layout.plane_rows):
        arena.index_copy_(0, at, make.normal(len(at), s.head_dim))
    queries = [make.normal(span, s.heads, s.head_dim) for span, _ in sizes]

    def run(rows: Sequence[int]) -> Outputs:
        """The last query of each sequence, and its first one."""
        chosen = [sizes[row] for row in rows]
        query = torch.cat([queries[row] for row in rows])
        slots = make.integers([0] * len(query))
        plan = _plan(make, layout, chosen, slots, table[list(rows)].to(make.device))
        found = (
            make.backend.paged_attention(arena, plan, _LAYER, query)
            .cpu()
            .split([n for n, _ in chosen])
        )
        return (torch.stack([part[-1] for part in found]), torch.stack([p[0] for p in found]))

    def expected() -> Outputs:
        memory = arena.cpu().double()
        ends, begins = [], []
        for row, ((span, context), query) in enumerate(zip(sizes, queries, strict=True)):
            at = places[row]
            key, value = memory[at], memory[at + layout.plane_rows]
            wide = query.cpu().double()
            ends.append(_attend(wide[-1], key, value))
            seen = context - span + 1
            begins.append(_attend(wide[0], key[:seen], value[:seen]))
        return torch.stack(ends), torch.stack(begins)

    return Check("attention", name, run, expected, len(sizes), (_MIXED, _MIXED))


def _seen(layout: KVLayout, pages: Tensor, context: int) -> Tensor:
    """Arena rows of a sequence's keys in ``_LAYER``, int64 [context, kv_heads]."""
    token = torch.arange(context)
    slots = pages.long()[token // PAGE] * PAGE + token % PAGE
    return _places(layout, slots).view(context, -1)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """One query [heads, width] over keys and values [context, kv_heads, width]."""
    group = query.shape[0] // key.shape[1]
    keys, values = (x.repeat_interleave(group, 1) for x in (key, value))
    weight = (torch.einsum("hd,chd->hc", query, keys) * query.shape[1] ** -0.5).softmax(-1)
    return torch.einsum("hc,chd->hd", weight, values)


def copies(make: Maker) -> Iterator[Check]:
    """Checks of copies of blocks; the rest of the arena stays. A pair below 0 is padding."""
    layout = _layout(make)
    arena = make.normal(2 * layout.slab_rows, layout.head_dim)
    pairs = torch.tensor([[0, 5], [4, 1], [-1, 2]], dtype=torch.int32)

    def run(_: Sequence[int]) -> Outputs:
        memory = arena.clone()
        make.backend.copy_blocks(memory, layout, pairs.to(make.device))
        return (memory,)

    def expected() -> Outputs:
        memory = arena.cpu().double()
        for source, target in layout.first_row(pairs[:2].long()).tolist():
            memory[target : target + layout.block_rows] = memory[
                source : source + layout.block_rows
            ].clone()
        return (memory,)

    yield Check("copy_blocks", "copy", run, expected, 1, ((0.0, 0.0),), alone=False)
