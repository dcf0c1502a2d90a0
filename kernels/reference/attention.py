"""Paged grouped-query attention over a shared arena, batched across sequences.

The arena is seen as rows of one head each: ``[arena_rows, head_dim]``. A block of ``T`` tokens
holds ``[layer, key|value, kv_head, T]`` such rows, so one head's keys of a block are contiguous.
Block ``b`` starts at row ``(b // slots) * slab_rows + (b % slots) * block_rows``: blocks need not
fill their slab.

Attention is spelled out as matmul, softmax, matmul so that a FLOP counter sees all of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from kernels.attention_config import Splits, Work
from kernels.reference.layers import apply_rope, rms_norm


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
    """What all layers of one tick share. Index tensors are int32, on the device of the arena.

    layout: of the model.
    table: [sequences, width], block ids.
    starts: [sequences + 1], first batch row of each sequence. One without rows is padding, as are
        the rows from ``starts[sequences]`` on: nothing of them is stored, and they attend to
        nothing, which comes out as zeros.
    contexts: [sequences], keys visible to each sequence's last row.
    slots: [rows], ``block * block_tokens + offset`` of each row; -1 for padding.
    work: what the host knows of the batch, for the kernels.
    splits: how the kernels cut keys; None lets them choose by the size of the batch.
    """

    layout: KVLayout
    table: Tensor
    starts: Tensor
    contexts: Tensor
    slots: Tensor
    work: Work
    splits: Splits | None = None
    _angles: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def build(
        cls, layout: KVLayout, starts: Tensor, contexts: Tensor, blocks: Tensor, slots: Tensor
    ) -> AttentionPlan:
        """From whole numbers of any type on the host."""
        work = Work.of(starts.tolist(), contexts.tolist())
        return cls(layout, blocks.int(), starts.int(), contexts.int(), slots.int(), work)

    def rotation(self, rope: Tensor, positions: Tensor) -> Tensor:
        """Cosines and sines of all rows, [2, rows, 1, head_dim]; looked up once a tick."""
        found = self._angles.get(id(rope))
        if found is None:
            found = rope.index_select(1, positions)[:, :, None]
            self._angles[id(rope)] = found
        return found

    @cached_property
    def kept(self) -> Tensor | None:
        """The rows that are stored, int64; None if all are."""
        return torch.nonzero(self.slots >= 0).flatten() if int(self.slots.min()) < 0 else None

    @cached_property
    def writes(self) -> Tensor:
        """[kept rows * kv_heads] int64, where layer 0's keys go."""
        tokens = self.layout.block_tokens
        slots = (self.slots if self.kept is None else self.slots[self.kept]).long()
        block = torch.div(slots, tokens, rounding_mode="floor")
        base = self.layout.first_row(block) + slots - block * tokens
        return (base[:, None] + torch.arange(self.layout.kv_heads) * tokens).flatten()

    @cached_property
    def groups(self) -> tuple[AttentionGroup, ...]:
        """What is attended to together.

        Decodes apart, longer spans by powers of two, and so are contexts above 64: padding at most
        doubles a group's queries and keys, and a long sequence costs its neighbours nothing.
        """
        starts, contexts, blocks = self.starts.long(), self.contexts.long(), self.table.long()
        spans = starts.diff()
        width = torch.where(spans == 1, 0, (spans - 1).clamp(min=1).log2().floor().long() + 1)
        bucket = width * 64 + (contexts - 1).clamp(min=63).log2().floor().long()
        bucket[spans == 0] = -1
        return tuple(
            self._group(self.layout, (bucket == b).nonzero()[:, 0], starts, spans, contexts, blocks)
            for b in sorted({*bucket.tolist()} - {-1})
        )

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
    return mixed.permute(0, 3, 1, 2, 4).reshape(size, rows, heads, width)
