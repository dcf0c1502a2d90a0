"""Paged grouped-query attention over a shared arena, batched across sequences.

Attention is spelled out as matmul, softmax, matmul so that a FLOP counter sees all of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.reference.layers import apply_rope, rms_norm
from kernels.types.attention import AttentionGroup, AttentionPlan, KVLayout


def copy_blocks(arena: Tensor, layout: KVLayout, copies: Tensor) -> None:
    """Copy whole blocks of one model, one pair after the other.

    Args:
        arena: [arena_rows, head_dim], written in place.
        copies: whole numbers [pairs, (from, to)], block ids; a pair from below 0 is padding.
    """
    for source, target in layout.first_row(copies).tolist():
        if source < 0:
            continue
        arena[target : target + layout.block_rows] = arena[source : source + layout.block_rows]


def rope_kv(
    qkv: Tensor,
    bias: Tensor | None,
    rope: Tensor,
    positions: Tensor,
    arena: Tensor,
    plan: AttentionPlan,
    layer: int,
    norms: tuple[Tensor, Tensor] | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """Add the bias, rotate the queries and keys, store the keys and values of a batch.

    Args:
        qkv: [rows, (heads + 2 * kv_heads) * head_dim], of queries, keys, values. Overwritten.
        bias: of its columns, or None.
        rope: fp32 [2, length, head_dim], see ``rope_tables``.
        positions: int32 [rows].
        arena: [arena_rows, head_dim], written in place.
        plan: of this batch.
        layer: whose keys and values these are.
        norms: weights [head_dim] of queries and keys, applied to each head, or None.
        eps: of the norms.

    Returns:
        The rotated queries, [rows, heads, head_dim].
    """
    layout = plan.layout
    if bias is not None:
        qkv = qkv.add_(bias)
    x = qkv.view(len(qkv), -1, layout.head_dim)
    turned, value = x[:, : -layout.kv_heads], x[:, -layout.kv_heads :]
    heads = turned.shape[1] - layout.kv_heads
    if norms is not None:
        parts = zip(turned.split([heads, layout.kv_heads], 1), norms, strict=True)
        turned = torch.cat([rms_norm(part, weight, eps) for part, weight in parts], 1)
    turned = apply_rope(turned, *plan.rotation(rope, positions))
    write_kv(arena, plan, layer, turned[:, heads:], value)
    return turned[:, :heads]


def write_kv(arena: Tensor, plan: AttentionPlan, layer: int, key: Tensor, value: Tensor) -> None:
    """Store the batch's keys and values [rows, kv_heads, head_dim] of one layer."""
    if plan.kept is not None:
        key, value = key[plan.kept], value[plan.kept]
    offset = 2 * layer * plan.layout.plane_rows
    width = plan.layout.head_dim
    arena.index_copy_(0, plan.writes + offset, key.reshape(-1, width))
    arena.index_copy_(0, plan.writes + offset + plan.layout.plane_rows, value.reshape(-1, width))


def paged_attention(arena: Tensor, plan: AttentionPlan, layer: int, query: Tensor) -> Tensor:
    """Causal attention of each batch row over its own sequence's keys in the arena.

    Args:
        arena: [arena_rows, head_dim], the rows of this batch already written.
        plan: of this batch.
        layer: whose keys and values to read.
        query: [rows, heads, head_dim], rotated.

    Returns:
        [rows, heads, head_dim] in the query's dtype; softmax in fp32.
    """
    out = torch.empty_like(query) if plan.kept is None else torch.zeros_like(query)
    for group in plan.groups:
        out[group.queries] = _attend(arena, plan.layout, layer, query[group.queries], group)
    return out


def _attend(
    arena: Tensor, layout: KVLayout, layer: int, query: Tensor, group: AttentionGroup
) -> Tensor:
    size, rows, heads, width = query.shape
    kv_heads = layout.kv_heads
    keys = (group.keys + 2 * layer * layout.plane_rows).flatten()
    shape = (size, kv_heads, group.keys.shape[-1], width)
    key = arena.index_select(0, keys).view(shape)
    value = arena.index_select(0, keys + layout.plane_rows).view(shape)
    # [G, kv_heads, heads per kv head * Q, d]: the queries of a group share one pass over its keys
    packed = query.view(size, rows, kv_heads, heads // kv_heads, width).permute(0, 2, 3, 1, 4)
    packed = packed.reshape(size, kv_heads, -1, width)
    score = (packed @ key.mT).float() * width**-0.5
    score = score.view(size, kv_heads, heads // kv_heads, rows, -1) + group.mask
    weight = score.softmax(-1).to(value.dtype).view(size, kv_heads, packed.shape[2], -1)
    mixed = (weight @ value).view(size, kv_heads, heads // kv_heads, rows, width)
    by_row: Tensor = mixed.permute(0, 3, 1, 2, 4).reshape(size, rows, heads, width)
    return by_row
