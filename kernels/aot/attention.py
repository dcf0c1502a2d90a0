"""Gates of ``kernels.attention``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from kernels.aot.roofline import Roofline
from kernels.aot.variant import ModelShape, Variant
from kernels.attention import MERGE_TILE
from kernels.attention_config import TILES_16BIT, TILES_32BIT, Splits, Tile, shared_constants
from kernels.attention_prefill import prefill_kernel
from kernels.attention_split import merge_kernel, split_kernel
from kernels.types.attention import KVLayout


def roofline(
    layout: KVLayout, heads: int, starts: Sequence[int], contexts: Sequence[int], itemsize: int = 2
) -> Roofline:
    """Each key and value of a sequence is read once, each query read and each result written."""
    spans = [b - a for a, b in pairwise(starts)]
    token = 2 * layout.kv_heads * layout.head_dim * itemsize
    seen = sum(s * c - s * (s - 1) // 2 for s, c in zip(spans, contexts, strict=True))
    row = heads * layout.head_dim
    return Roofline(sum(contexts) * token + 2 * sum(spans) * row * itemsize, 4 * seen * row)


# Instructions an element of one step's keys and values; long spans have their loop twice.
_BUDGET = {"decode": 16, "short": 28, "long": 72}


def variants(shape: ModelShape) -> list[Variant]:
    """Pages of 64 tokens, 64 sequences; bf16, and the products also in fp32."""
    layout = (
        "slots",
        "slab_rows",
        "block_rows",
        "plane_rows",
        "layer_rows",
        "table_width",
        "sequences",
        "rows",
        "splits",
    )
    signature = dict.fromkeys(("table", "starts", "contexts"), "*i32")
    signature |= dict.fromkeys(("stats", "parts"), "*fp32") | dict.fromkeys(layout, "i32")
    signature["scale"] = "fp32"
    gates = []
    for suffix, dtype, tiles in (("", "*bf16", TILES_16BIT), ("_fp32", "*fp32", TILES_32BIT)):
        types = signature | dict.fromkeys(("query", "arena", "out"), dtype)
        for kind, tile in tiles.items():
            products, merges = _variants_of(kind, tile, shape, types)
            gates.append(replace(products, name=products.name + suffix))
            if merges is not None and not suffix:
                gates.append(merges)
    return gates


def _variants_of(
    kind: str, tile: Tile, shape: ModelShape, types: Mapping[str, str]
) -> tuple[Variant, Variant | None]:
    """The kernel of the products, and the merge where keys are split."""
    constants: dict[str, Any] = shared_constants(
        kind, shape.heads // shape.kv_heads, shape.head_dim, 64, tile
    )
    tiles = {"page": 64, "block_m": tile.rows, "block_n": tile.keys, "upcast": False}
    limits = {
        "elements": 2 * tile.keys * shape.head_dim,
        "budget": _BUDGET[kind] if tile is TILES_16BIT[kind] else 0,
    }
    options = {"warps": tile.warps, "stages": tile.stages}
    if kind == "long":
        constants |= tiles | {"clear": True}
        return _variant("prefill", prefill_kernel, types, constants, options | limits), None
    splits = Splits.choose(1, shape.kv_heads)
    split = splits.decode if kind == "decode" else splits.short
    constants |= {"chunk": split.chunk, "most": split.most}
    merged = constants | {"tile": min(MERGE_TILE, split.most), "clear": True}
    of_merge = {"elements": merged["tile"] * shape.head_dim, "budget": 64}
    return (
        _variant(f"{kind}_split", split_kernel, types, constants | tiles, options | limits),
        _variant(f"{kind}_merge", merge_kernel, types, merged, of_merge),
    )


def _variant(
    name: str,
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Variant:
    used = {k: v for k, v in types.items() if k in kernel.arg_names}
    pointers = tuple(k for k, v in used.items() if v.startswith("*"))
    return Variant("attention", name, kernel, used, constants, pointers, **options)
