"""Where keys and values lie in the arena, and what a batch attends to.

The arena is seen as rows of one head each: ``[arena_rows, head_dim]``. A block of ``T`` tokens
holds ``[layer, key|value, kv_head, T]`` such rows, so one head's keys of a block are contiguous.
Block ``b`` starts at row ``(b // slots) * slab_rows + (b % slots) * block_rows``: blocks need not
fill their slab.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from kernels.attention_config import Splits, Work


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
        layout: KVLayout,
        members: Tensor,
        starts: Tensor,
        spans: Tensor,
        contexts: Tensor,
        blocks: Tensor,
    ) -> AttentionGroup:
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
