"""Paged grouped-query causal attention of one layer, for decodes, short and long spans at once.

    out[row, head] = softmax(query[row, head] . keys / sqrt(head_dim)) . values

query and out are [rows, heads, head_dim] in bf16, fp16 or fp32; keys and values are rows of the
arena, of the same type, where ``KVLayout`` puts them. ``starts`` int32 [sequences + 1] cuts the
rows into sequences; the last row of a sequence sees ``contexts`` int32 [sequences] keys, each row
before it one less; ``table`` int32 [sequences, width] holds block ids. Rows after
``starts[sequences]`` are padding and come out as zeros. Softmax and sums are fp32.

A sequence goes by the number of its own queries: decodes (1) and short spans (2 to 64) to a kernel
that splits the keys as well, longer ones to one that does not. So it gets the same bits whatever
else is in the batch, as long as the chunks (``Splits``) are the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from kernels.arena import FLOATS, check_layout
from kernels.attention_config import (
    TILES_16BIT,
    TILES_32BIT,
    Split,
    Splits,
    Work,
    check_splits,
    query_blocks,
    shared_constants,
)
from kernels.attention_prefill import prefill_kernel
from kernels.attention_split import merge_kernel, split_kernel
from kernels.checks import check_choice, check_device, check_tensor, interpreted
from kernels.types.attention import KVLayout

HEAD_DIMS = (16, 32, 64, 128)
WIDEST_GROUP = 16
MOST_SEQUENCES = 4096
MERGE_TILE = 16  # splits that are read at once


def paged_attention(
    query: Tensor,
    arena: Tensor,
    layout: KVLayout,
    layer: int,
    table: Tensor,
    starts: Tensor,
    contexts: Tensor,
    work: Work | None = None,
    splits: Splits | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Attention of each row over its own sequence's keys, which must be in the arena already.

    Args:
        query: [rows, heads, head_dim], rotated.
        arena: [arena_rows, head_dim].
        layout: of the model.
        layer: whose keys and values to read.
        table, starts, contexts: see above; read on the device only, so that they may change
            between replays of a graph.
        work: upper bounds of the batch; they fix the launch grid. Default: whatever would fit.
        splits: default: chosen by the number of sequences. A fixed choice makes results
            independent of that too.
        out: like query; default: a new tensor.
    """
    _check(query, arena, layout, layer, table, starts, contexts)
    rows, (sequences, width) = len(query), table.shape
    if out is None:
        out = torch.empty_like(query)
    check_tensor("out", out, query.shape, (query.dtype,), like=query)
    reach = width * layout.block_tokens
    work = work or Work(sequences, sequences, rows, sequences, rows, reach)
    if work.context > reach:
        raise ValueError(
            f"table is too narrow: {width} blocks of {layout.block_tokens} tokens hold {reach} "
            f"keys, work.context is {work.context}"
        )
    splits = splits or Splits.choose(sequences, layout.kv_heads)
    check_splits(splits)
    batch = _Batch(query, arena, layout, layer, table, starts, contexts, out, work.context)
    cleared = not rows
    for kind, bound, of_rows in (
        ("decode", sequences if work.decodes else 0, 0),
        ("short", work.shorts, work.short_rows),
        ("long", work.longs, work.long_rows),
    ):
        if min(bound, rows, sequences) > 0:
            split = {"decode": splits.decode, "short": splits.short}.get(kind)
            batch.launch(kind, bound, min(of_rows, rows), split, not cleared)
            cleared = True
    return out if cleared else out.zero_()


@dataclass(frozen=True)
class _Batch:
    query: Tensor
    arena: Tensor
    layout: KVLayout
    layer: int
    table: Tensor
    starts: Tensor
    contexts: Tensor
    out: Tensor
    context: int

    def launch(self, kind: str, bound: int, of_rows: int, split: Split | None, clear: bool) -> None:
        """All sequences of one kind, ``bound`` at most, with ``of_rows`` queries together."""
        layout, (sequences, width) = self.layout, self.table.shape
        rows, heads, head_dim = self.query.shape
        half = self.query.dtype.itemsize == 2
        tile = (TILES_16BIT if half else TILES_32BIT)[kind]
        group = heads // layout.kv_heads
        constants = shared_constants(kind, group, head_dim, sequences, tile)
        block_q = constants["block_q"]
        blocks = query_blocks(bound, of_rows, block_q)
        where = (
            layout.slots,
            layout.slab_rows,
            layout.block_rows,
            layout.plane_rows,
            2 * self.layer * layout.plane_rows,
            width,
            sequences,
        )
        batch = (self.table, self.starts, self.contexts)
        tiles = {
            "page": layout.block_tokens,
            "block_m": tile.rows,
            "block_n": tile.keys,
            "upcast": interpreted(split_kernel),
        }
        options = {"num_warps": tile.warps, "num_stages": tile.stages}
        scale = head_dim**-0.5 * math.log2(math.e)
        if split is None:
            prefill_kernel[(blocks, layout.kv_heads)](
                self.query,
                self.arena,
                *batch,
                self.out,
                *where,
                rows,
                scale,
                **constants,
                **tiles,
                clear=clear,
                **options,
            )
            return
        tiles["block_n"] = min(tile.keys, split.chunk)
        pieces = min(split.most, triton.cdiv(self.context, split.chunk)) or 1
        cut = {"chunk": split.chunk, "most": split.most}
        packed = block_q * group
        shape = (blocks, layout.kv_heads, packed)
        stats = self.query.new_empty((*shape, 2, pieces), dtype=torch.float32)
        parts = self.query.new_empty((*shape, pieces, head_dim), dtype=torch.float32)
        split_kernel[(blocks, layout.kv_heads, pieces)](
            self.query,
            self.arena,
            *batch,
            stats,
            parts,
            *where,
            pieces,
            scale,
            **constants,
            **tiles,
            **cut,
            **options,
        )
        merge_kernel[shape](
            stats,
            parts,
            self.starts,
            self.contexts,
            self.out,
            sequences,
            rows,
            pieces,
            **constants,
            **cut,
            tile=min(MERGE_TILE, split.most),
            clear=clear,
            num_warps=4,
        )


def _check(
    query: Tensor,
    arena: Tensor,
    layout: KVLayout,
    layer: int,
    table: Tensor,
    starts: Tensor,
    contexts: Tensor,
) -> None:
    check_choice("layout.head_dim", layout.head_dim, HEAD_DIMS)
    check_layout(layout, layer)
    check_tensor("query", query, (None, None, layout.head_dim), FLOATS)
    check_device("query", query, split_kernel)
    heads, head_dim = query.shape[1:]
    if heads % layout.kv_heads or not 1 <= heads // layout.kv_heads <= WIDEST_GROUP:
        raise ValueError(
            f"query must have 1 to {WIDEST_GROUP} heads for each of layout.kv_heads = "
            f"{layout.kv_heads}, got {heads}"
        )
    check_tensor("arena", arena, (None, head_dim), (query.dtype,), like=query)
    integers = (torch.int32,)
    check_tensor("table", table, (None, None), integers, like=query)
    sequences = table.shape[0]
    check_tensor("starts", starts, (sequences + 1,), integers, like=query)
    check_tensor("contexts", contexts, (sequences,), integers, like=query)
    if sequences > MOST_SEQUENCES:
        raise ValueError(f"table must have at most {MOST_SEQUENCES} rows, got {sequences}")
