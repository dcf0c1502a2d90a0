"""Paged grouped-query attention over a shared arena, batched across sequences.

The arena is seen as rows of one head each: ``[arena_rows, head_dim]``. A block of ``T`` tokens
holds ``[layer, key|value, kv_head, T]`` such rows, so one head's keys of a block are contiguous.
Block ``b`` starts at row ``(b // slots) * slab_rows + (b % slots) * block_rows``: blocks need not
fill their slab.

Attention is spelled out as matmul, softmax, matmul so that a FLOP counter sees all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class KVLayout:
    """Where a model's keys and values lie in the arena. Sizes in rows of ``head_dim`` elements."""

    layers: int
    kv_heads: int
    head_dim: int
    block_tokens: int
    slots: int
    slab_rows: int

    @property
    def plane_rows(self) -> int:
        """Rows of the keys (or values) of one layer in one block."""
        return self.kv_heads * self.block_tokens

    @property
    def block_rows(self) -> int:
        """Rows of one block."""
        return self.layers * 2 * self.plane_rows

    def first_row(self, blocks: Tensor) -> Tensor:
        """First arena row of each block id, same shape, int64."""
        slab = torch.div(blocks, self.slots, rounding_mode="floor")
        return slab * self.slab_rows + (blocks - slab * self.slots) * self.block_rows


@dataclass(frozen=True)
class AttentionGroup:
    """Sequences whose spans are padded to the same number of query rows.

    ``queries`` [G, Q] rows of the batch (padding repeats the last one), ``keys`` [G, kv_heads, L]
    arena rows of layer 0's keys, ``mask`` [G, 1, 1, Q, L] fp32, 0 or -inf.
    """

    queries: Tensor
    keys: Tensor
    mask: Tensor


@dataclass(frozen=True)
class AttentionPlan:
    """What all layers of one tick share: where to write new rows and what each group reads."""

    layout: KVLayout
    writes: Tensor  # [rows * kv_heads] arena rows of layer 0's keys
    groups: tuple[AttentionGroup, ...]

    @classmethod
    def build(
        cls, layout: KVLayout, starts: Tensor, contexts: Tensor, blocks: Tensor, slots: Tensor
    ) -> AttentionPlan:
        """Plan one batch.

        Args:
            layout: of the model.
            starts: [sequences + 1] int64, first batch row of each sequence.
            contexts: [sequences] int64, keys visible to each sequence's last row.
            blocks: [sequences, width] int64, block ids.
            slots: [rows] int64, ``block * block_tokens + offset`` of each row.
        """
        tokens = layout.block_tokens
        heads = torch.arange(layout.kv_heads) * tokens
        block = torch.div(slots, tokens, rounding_mode="floor")
        base = layout.first_row(block) + slots - block * tokens
        spans = starts[1:] - starts[:-1]
        # Decodes apart, longer spans by powers of two, and so are contexts above 64: padding at
        # most doubles a group's queries and keys, and a long sequence costs its neighbours nothing.
        width = torch.where(spans == 1, 0, (spans - 1).clamp(min=1).log2().floor().long() + 1)
        bucket = width * 64 + (contexts - 1).clamp(min=63).log2().floor().long()
        groups = tuple(
            cls._group(layout, members, starts, spans, contexts, blocks)
            for members in (torch.nonzero(bucket == b).flatten() for b in bucket.unique())
        )
        return cls(layout, (base[:, None] + heads).flatten(), groups)

    @staticmethod
    def _group(
        layout: KVLayout, members: Tensor, starts: Tensor, spans: Tensor, contexts: Tensor,
        blocks: Tensor,
    ) -> AttentionGroup:  # fmt: skip
        tokens = layout.block_tokens
        span, context = spans[members], contexts[members]
        row = torch.arange(int(span.max())).minimum(span[:, None] - 1)  # [G, Q]
        length = int(context.max())
        position = torch.arange(length)
        table = blocks[members][:, : (length + tokens - 1) // tokens]
        first = layout.first_row(table).repeat_interleave(tokens, 1)[:, :length]
        keys = (first + position % tokens)[:, None] + (torch.arange(layout.kv_heads) * tokens)[
            :, None
        ]
        # Rows past a sequence's end point at foreign memory: they are masked, never trusted.
        keys = torch.where(position < context[:, None, None], keys, keys[:, :, :1])
        visible = position <= (context - span)[:, None, None] + row[:, :, None]
        mask = torch.zeros(visible.shape).masked_fill_(~visible, float("-inf"))
        return AttentionGroup(starts[members][:, None] + row, keys, mask[:, None, None])


def copy_blocks(arena: Tensor, layout: KVLayout, copies: Tensor) -> None:
    """Copy whole blocks of one model, one pair after the other.

    Args:
        arena: [arena_rows, head_dim], written in place.
        copies: int64 [pairs, (from, to)], block ids.
    """
    for source, target in layout.first_row(copies).tolist():
        arena[target : target + layout.block_rows] = arena[source : source + layout.block_rows]


def write_kv(arena: Tensor, plan: AttentionPlan, layer: int, key: Tensor, value: Tensor) -> None:
    """Store the batch's keys and values [rows, kv_heads, head_dim] of one layer."""
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
    out = torch.empty_like(query)
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
    return mixed.permute(0, 3, 1, 2, 4).reshape(size, rows, heads, width)
