"""Gates of ``kernels.lm_head``."""

from __future__ import annotations

import torch
import triton

from kernels.aot.merge import merge_signature
from kernels.aot.roofline import Roofline
from kernels.aot.variant import ModelShape, Variant
from kernels.lm_head import BLOCK_N, CONFIGS, head_statistics
from kernels.merge import MERGE_WARPS, merge_rows


def roofline(
    rows: int, depth: int, head_rows: int, dtype: torch.dtype, store: torch.dtype | None = None
) -> Roofline:
    """The weights once, the rows once, and the logits once if they are stored."""
    stored = rows * head_rows * store.itemsize if store is not None else 0
    return Roofline(
        (head_rows + rows) * depth * dtype.itemsize + stored, 2 * rows * head_rows * depth
    )


def variants(shape: ModelShape) -> list[Variant]:
    """Each range of M without logits, with logits in fp32, and with a draw from them; the merge."""
    gates = []
    drawn = [*((c, "*bf16", True) for c in CONFIGS[:2]), (CONFIGS[0], "*fp32", True)]
    kept = [(c, store, False) for store in ("", "*fp32") for c in CONFIGS]
    for c, store, draw in (*kept, *drawn):
        signature = {
            "hidden": "*bf16",
            "weight": "*bf16",
            "logits": store or "*fp32",
            "temperatures": "*fp64",
            "keys": "*i64",
            "counters": "*i64",
            "partials": "*fp32",
            "firsts": "*i32",
            "rows": "i32",
            "depth": "i32",
            "head_rows": "i32",
            "vocabulary": "i32",
            "hidden_stride": "i32",
            "weight_stride": "i32",
        }
        constants = {
            "block_m": c.rows,
            "block_n": BLOCK_N,
            "block_k": c.depth,
            "even_k": shape.hidden % c.depth == 0,
            "store": bool(store),
            "draw": draw,
            "upcast": False,
        }
        gates.append(
            Variant(
                "lm_head",
                f"m{c.rows}" + f"-{store[1:]}" * bool(store) + "-draw" * draw,
                head_statistics,
                signature,
                constants,
                (
                    "hidden",
                    "weight",
                    "logits",
                    "partials",
                    "depth",
                    "head_rows",
                    "hidden_stride",
                    "weight_stride",
                ),
                c.warps,
                c.stages,
                elements=BLOCK_N * c.rows,
                budget=150 if draw else 70 if store else 62,
            )
        )
    tiles = triton.next_power_of_2(triton.cdiv(shape.head_rows, BLOCK_N))
    for draw in (False, True):
        # Part of the program is there whatever the tiles: a small head spreads it over fewer.
        fixed, each = (53_000, 79.0) if draw else (53_000, 40.6)
        gates.append(
            Variant(
                "lm_head",
                "merge" + "-draw" * draw,
                merge_rows,
                merge_signature("*bf16"),
                {"block": BLOCK_N, "tile_lanes": tiles, "head": True, "draw": draw},
                ("logits", "partials", "head_rows", "stride"),
                MERGE_WARPS,
                elements=BLOCK_N + tiles,
                budget=round(fixed / (BLOCK_N + tiles) + each, 1),
                wide=False,
            )
        )
    return gates
