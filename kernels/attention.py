"""Paged grouped-query causal attention of one layer, for decodes, short and long spans at once.

    out[row, head] = softmax(query[row, head] . keys / sqrt(head_dim)) . values

query and out are [rows, heads, head_dim] in bf16, fp16 or fp32; keys and values are rows of the
arena, of the same type, where ``KVLayout`` puts them. ``starts`` int32 [sequences + 1] cuts the
rows into sequences; the last row of a sequence sees ``contexts`` int32 [sequences] keys, each row
before it one less; ``table`` int32 [sequences, width] holds block ids. Rows after
``starts[sequences]`` are padding and come out as zeros. Softmax and sums are fp32.

A sequence goes by the number of its own queries: decodes (1) and short spans (2 to 64) to a kernel
that splits the keys as well, longer ones to one that does not. So it gets the same bits whoever
else is in the batch, as long as the chunks (``Splits``) are the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import triton
from torch import Tensor

from kernels.attention_prefill import prefill_kernel
from kernels.attention_split import merge_kernel, split_kernel
from kernels.checks import check_choice, check_tensor
from kernels.floor import Floor
from kernels.reference.attention import KVLayout
from kernels.variant import ModelShape, Variant

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
HEAD_DIMS = (16, 32, 64, 128)
PAGES = (4, 8, 16, 32, 64, 128)
WIDEST_GROUP = 16
MOST_SEQUENCES = 4096
SHORT = 64  # queries: longer spans fill the card without splitting their keys
_LONGEST = 2**30
_MERGED = 16  # splits that are read at once


@dataclass(frozen=True)
class Split:
    """``chunk`` tokens a split at least, ``most`` splits a sequence at most; powers of two."""

    chunk: int
    most: int


@dataclass(frozen=True)
class Splits:
    """Of decodes and of short spans."""

    decode: Split
    short: Split

    @classmethod
    def choose(cls, sequences: int, kv_heads: int) -> Splits:
        """By the size of the batch: its capacity, not what is in it.

        One sequence must be cut fine to fill a card; many fill it by themselves, and each split
        costs ``4 * head_dim`` bytes of partial result per query and head, written and read. Short
        spans write ``SHORT`` times more of them, hence longer chunks.
        """
        work = sequences * kv_heads
        for most, splits in _TABLE:
            if work <= most:
                return splits
        return _MANY


_TABLE = (
    (4, Splits(Split(64, 64), Split(128, 32))),
    (8, Splits(Split(64, 64), Split(256, 32))),
    (32, Splits(Split(128, 32), Split(256, 16))),
    (128, Splits(Split(256, 32), Split(512, 8))),
)
_MANY = Splits(Split(512, 16), Split(1024, 2))


@dataclass(frozen=True)
class Work:
    """What the host knows of a batch: upper bounds, so that one graph serves many batches.

    decodes, shorts, longs: sequences with 1, 2 to ``SHORT``, and more queries.
    short_rows, long_rows: their queries.
    context: keys of any sequence.
    """

    decodes: int
    shorts: int
    short_rows: int
    longs: int
    long_rows: int
    context: int

    @classmethod
    def of(cls, starts: Sequence[int], contexts: Sequence[int]) -> Work:
        """Exactly that of a batch."""
        spans = [b - a for a, b in pairwise(starts)]
        if len(spans) != len(contexts):
            raise ValueError(f"contexts must have {len(spans)} entries, got {len(contexts)}")
        for span, context in zip(spans, contexts, strict=True):
            if not 0 <= span <= context:
                raise ValueError(f"contexts must cover their spans, got {context} of {span} rows")
        short = [s for s in spans if 1 < s <= SHORT]
        long = [s for s in spans if s > SHORT]
        return cls(
            spans.count(1), len(short), sum(short), len(long), sum(long), max(contexts, default=0)
        )


@dataclass(frozen=True)
class _Tile:
    """Packed rows and keys of one step of a program."""

    rows: int
    keys: int
    warps: int
    stages: int


# fp32 takes twice the shared memory a step and has no tensor cores at full precision.
_HALF = {"decode": _Tile(16, 64, 4, 3), "short": _Tile(64, 64, 4, 3), "long": _Tile(128, 64, 8, 3)}
_FULL = {"decode": _Tile(16, 32, 4, 2), "short": _Tile(64, 32, 8, 2), "long": _Tile(64, 32, 8, 2)}


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
        work: bounds of the batch; what is launched hangs on them. Default: whatever would fit.
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
    _check_splits(splits)
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
        tile = (_HALF if half else _FULL)[kind]
        group = heads // layout.kv_heads
        constants = _constants(kind, group, head_dim, sequences, tile)
        block_q = constants["block_q"]
        blocks = bound + max(0, of_rows - bound) // block_q
        where = (
            layout.slots, layout.slab_rows, layout.block_rows, layout.plane_rows,
            2 * self.layer * layout.plane_rows, width, sequences,
        )  # fmt: skip
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
                self.query, self.arena, *batch, self.out, *where, rows, scale,
                **constants, **tiles, clear=clear, **options,
            )  # fmt: skip
            return
        tiles["block_n"] = min(tile.keys, split.chunk)
        pieces = min(split.most, triton.cdiv(self.context, split.chunk)) or 1
        cut = {"chunk": split.chunk, "most": split.most}
        packed = block_q * group
        shape = (blocks, layout.kv_heads, packed)
        stats = self.query.new_empty((*shape, 2, pieces), dtype=torch.float32)
        parts = self.query.new_empty((*shape, pieces, head_dim), dtype=torch.float32)
        split_kernel[(blocks, layout.kv_heads, pieces)](
            self.query, self.arena, *batch, stats, parts, *where, pieces, scale,
            **constants, **tiles, **cut, **options,
        )  # fmt: skip
        merge_kernel[shape](
            stats, parts, self.starts, self.contexts, self.out, sequences, rows, pieces,
            **constants, **cut, tile=min(_MERGED, split.most), clear=clear, num_warps=4,
        )  # fmt: skip


def _constants(kind: str, group: int, head_dim: int, sequences: int, tile: _Tile) -> dict[str, int]:
    """Constants that all kernels of a kind share."""
    low, high = {"decode": (1, 1), "short": (2, SHORT), "long": (SHORT + 1, _LONGEST)}[kind]
    return {
        "group": group,
        "head_dim": head_dim,
        "block_q": 1 if high == 1 else tile.rows // group,
        "low": low,
        "high": high,
        "lanes": 1 if high == 1 else max(32, triton.next_power_of_2(sequences)),
    }


def interpreted(kernel: Any) -> bool:
    """Whether Triton runs a kernel in its interpreter, on the CPU."""
    return not isinstance(kernel, triton.JITFunction)


def _check(
    query: Tensor, arena: Tensor, layout: KVLayout, layer: int, table: Tensor, starts: Tensor,
    contexts: Tensor,
) -> None:  # fmt: skip
    check_choice("layout.head_dim", layout.head_dim, HEAD_DIMS)
    check_choice("layout.block_tokens", layout.block_tokens, PAGES)
    check_tensor("query", query, (None, None, layout.head_dim), FLOATS)
    if not (query.is_cuda or interpreted(split_kernel)):
        raise ValueError(f"query must be on a CUDA device, got {query.device}")
    heads, head_dim = query.shape[1:]
    if heads % layout.kv_heads or not 1 <= heads // layout.kv_heads <= WIDEST_GROUP:
        raise ValueError(
            f"query must have 1 to {WIDEST_GROUP} heads for each of layout.kv_heads = "
            f"{layout.kv_heads}, got {heads}"
        )
    check_tensor("arena", arena, (None, head_dim), (query.dtype,), like=query)
    if layout.slots * layout.block_rows > layout.slab_rows or layout.slots < 1:
        raise ValueError(
            f"layout.slab_rows must hold layout.slots = {layout.slots} blocks of "
            f"{layout.block_rows} rows, got {layout.slab_rows}"
        )
    if not 0 <= layer < layout.layers:
        raise ValueError(f"layer must be in 0..{layout.layers - 1}, got {layer}")
    integers = (torch.int32,)
    check_tensor("table", table, (None, None), integers, like=query)
    sequences = table.shape[0]
    check_tensor("starts", starts, (sequences + 1,), integers, like=query)
    check_tensor("contexts", contexts, (sequences,), integers, like=query)
    if sequences > MOST_SEQUENCES:
        raise ValueError(f"table must have at most {MOST_SEQUENCES} rows, got {sequences}")


def _check_splits(splits: Splits) -> None:
    for name, split in (("decode", splits.decode), ("short", splits.short)):
        if split.chunk < 16 or split.chunk & (split.chunk - 1):
            raise ValueError(
                f"splits.{name}.chunk must be a power of two, at least 16, got {split.chunk}"
            )
        if split.most < 1 or split.most & (split.most - 1):
            raise ValueError(f"splits.{name}.most must be a power of two, got {split.most}")


def floor(
    layout: KVLayout, heads: int, starts: Sequence[int], contexts: Sequence[int], itemsize: int = 2
) -> Floor:
    """Each key and value of a sequence is read once, each query read and each result written."""
    spans = [b - a for a, b in pairwise(starts)]
    token = 2 * layout.kv_heads * layout.head_dim * itemsize
    seen = sum(s * c - s * (s - 1) // 2 for s, c in zip(spans, contexts, strict=True))
    row = heads * layout.head_dim
    return Floor(sum(contexts) * token + 2 * sum(spans) * row * itemsize, 4 * seen * row)


# Instructions an element of one step's keys and values; long spans have their loop twice.
_BUDGET = {"decode": 16, "short": 28, "long": 72}


def variants(shape: ModelShape) -> list[Variant]:
    """bf16, pages of 64 tokens, 64 sequences."""
    layout = ("slots", "slab_rows", "block_rows", "plane_rows", "layer_rows", "table_width",
              "sequences", "rows", "splits")  # fmt: skip
    signature = dict.fromkeys(("query", "arena", "out"), "*bf16")
    signature |= dict.fromkeys(("table", "starts", "contexts"), "*i32")
    signature |= dict.fromkeys(("stats", "parts"), "*fp32") | dict.fromkeys(layout, "i32")
    signature["scale"] = "fp32"
    pointers = ("query", "arena", "table", "starts", "contexts", "stats", "parts", "out")
    group, found = shape.heads // shape.kv_heads, []
    for kind, tile in _HALF.items():
        constants: dict[str, Any] = _constants(kind, group, shape.head_dim, 64, tile)
        splits = Splits.choose(1, shape.kv_heads)
        split = splits.decode if kind == "decode" else splits.short
        tiles = {"page": 64, "block_m": tile.rows, "block_n": tile.keys, "upcast": False}
        cut = {"chunk": split.chunk, "most": split.most}
        both: list[tuple[str, Any, dict[str, Any], int, int]]
        if kind == "long":
            both = [("prefill", prefill_kernel, tiles | {"clear": True}, tile.warps, tile.stages)]
        else:
            last = {"tile": min(_MERGED, split.most), "clear": True}
            both = [
                (f"{kind}_split", split_kernel, tiles | cut, tile.warps, tile.stages),
                (f"{kind}_merge", merge_kernel, cut | last, 4, 3),
            ]
        for name, kernel, more, warps, stages in both:
            used = kernel.arg_names
            found.append(
                Variant(
                    op="attention",
                    name=f"{name} {shape.name}",
                    kernel=kernel,
                    signature={k: v for k, v in signature.items() if k in used},
                    constants=constants | more,
                    aligned=tuple(p for p in pointers if p in used),
                    warps=warps,
                    stages=stages,
                    elements=0 if kernel is merge_kernel else 2 * tile.keys * shape.head_dim,
                    budget=0 if kernel is merge_kernel else _BUDGET[kind],
                )
            )
    return found
