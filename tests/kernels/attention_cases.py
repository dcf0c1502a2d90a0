"""Batches for paged attention, and what they come to in fp64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from kernels.attention import paged_attention
from kernels.attention_config import Split, Splits, Work
from kernels.types.attention import KVLayout

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
LAYER = 1
FINE = Splits(Split(16, 8), Split(16, 4))  # chunks so small that short contexts have many
# fp32 on tensor cores is three products of 10-bit fractions each, a few times coarser than fp32.
TOLERANCE = {torch.float32: 1e-5 if GPU else 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@dataclass
class Case:
    """A batch over an arena in which nothing but the keys of its sequences is written."""

    layout: KVLayout
    heads: int
    starts: list[int]
    contexts: list[int]
    query: torch.Tensor
    arena: torch.Tensor
    table: torch.Tensor
    written: list[torch.Tensor]  # arena rows of each sequence's keys of head 0

    def run(self, work="exact", splits=FINE, **changes):
        """The kernels' answer; what they do not write stays NaN."""
        arguments = {
            "query": self.query,
            "arena": self.arena,
            "layout": self.layout,
            "layer": LAYER,
            "table": self.table,
            "starts": integers(self.starts),
            "contexts": integers(self.contexts),
            "splits": splits,
            "work": Work.of(self.starts, self.contexts) if work == "exact" else work,
            "out": torch.full_like(self.query, float("nan")),
        }
        return paged_attention(**(arguments | changes))

    def expected(self):
        """[rows, heads, head_dim] fp64: each sequence alone, its keys gathered."""
        layout = self.layout
        out = torch.zeros(self.query.shape, dtype=torch.float64)
        memory, query = self.arena.cpu().double(), self.query.cpu().double()
        group = self.heads // layout.kv_heads
        for index, (a, b) in enumerate(pairwise(self.starts)):
            context = self.contexts[index]
            keep = torch.arange(context) <= context - (b - a) + torch.arange(b - a)[:, None]
            for head in range(self.heads):
                rows = self.written[index] + head // group * layout.block_tokens
                score = query[a:b, head] @ memory[rows].T * layout.head_dim**-0.5
                weight = score.masked_fill(~keep, float("-inf")).softmax(-1)
                out[a:b, head] = weight @ memory[rows + layout.plane_rows]
        return out

    def check(self, **options):
        """Against fp64."""
        found = self.run(**options)
        assert found.dtype == self.query.dtype
        found, expected = found.cpu().double(), self.expected()
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[self.query.dtype])
        assert (found - expected).abs().mean() < TOLERANCE[self.query.dtype] / 8

    def alone(self, index):
        """One sequence of it."""
        a, b = self.starts[index : index + 2]
        return replace(
            self,
            starts=[0, b - a],
            contexts=[self.contexts[index]],
            query=self.query[a:b].clone(),
            table=self.table[index : index + 1].clone(),
            written=[self.written[index]],
        )


def integers(values):
    """int32 on the device."""
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def make(
    spans,
    contexts,
    *,
    group=3,
    kv_heads=1,
    head_dim=16,
    page=16,
    dtype=torch.float32,
    slots=3,
    layers=2,
    extra_rows=5,
    padding=0,
    wide=0,
    seed=0,
):
    """Random queries, keys and values; blocks scattered over slabs that they do not fill."""
    draw = torch.Generator().manual_seed(seed)
    block_rows = layers * 2 * kv_heads * page
    layout = KVLayout(layers, kv_heads, head_dim, page, slots, slots * block_rows + extra_rows)
    counts = [-(-c // page) for c in contexts]
    slabs = (sum(counts) + 3) // slots + 1
    arena = torch.full((slabs * layout.slab_rows, head_dim), float("nan"))
    ids = torch.randperm(slabs * slots, generator=draw)[: sum(counts)].split(counts)
    table = torch.zeros(len(spans), max(counts, default=0) + wide, dtype=torch.int32)
    written = []
    for index, (context, blocks) in enumerate(zip(contexts, ids, strict=True)):
        table[index, : len(blocks)] = blocks
        rows = layout.first_row(blocks).repeat_interleave(page)[:context]
        rows = rows + torch.arange(context) % page + 2 * LAYER * layout.plane_rows
        for plane in range(2 * kv_heads):
            arena[rows + plane * page] = torch.randn(context, head_dim, generator=draw)
        written.append(rows)
    starts = [0, *torch.tensor(spans, dtype=torch.long).cumsum(0).tolist()]
    heads = group * kv_heads
    query = torch.randn(starts[-1] + padding, heads, head_dim, generator=draw)
    return Case(
        layout,
        heads,
        starts,
        contexts,
        query.to(dtype).to(DEVICE),
        arena.to(dtype).to(DEVICE),
        table.to(DEVICE),
        written,
    )
