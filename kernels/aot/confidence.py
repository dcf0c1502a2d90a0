"""Gates of ``kernels.confidence``, and of what it launches: the merge, draws with filters."""

from __future__ import annotations

from itertools import product

import torch
import triton

from kernels.aot import sampling
from kernels.aot.merge import merge_signature
from kernels.aot.roofline import Roofline
from kernels.aot.variant import ModelShape, Variant
from kernels.confidence import BLOCK, RACE, SCORE_BLOCK, WARPS, score_targets, tile_statistics
from kernels.merge import MERGE_WARPS, merge_rows


def roofline(rows: int, vocabulary: int, dtype: torch.dtype) -> Roofline:
    """Each logit read once; about ten operations on each."""
    return Roofline(rows * vocabulary * dtype.itemsize + 40 * rows, 10 * rows * vocabulary)


def variants(shape: ModelShape) -> list[Variant]:
    """Statistics alone, with a draw, and a draw alone; merge, scores and filters.

    The race is a loop over RACE ids, whose code counts once: some 50 instructions an element.
    """
    gates = []
    tiles = triton.next_power_of_2(triton.cdiv(shape.head_rows, BLOCK))
    signature = {
        "temperatures": "*fp64",
        "keys": "*i64",
        "counters": "*i64",
        "partials": "*fp32",
        "rows": "i32",
        "width": "i32",
        "vocabulary": "i32",
        "stride": "i32",
    }
    for dtype, statistics, draw, budget in (
        ("*bf16", True, False, 15),
        ("*bf16", True, True, 24),
        ("*fp32", True, False, 15),
        ("*fp32", True, True, 24),
        ("*fp32", False, True, 17),
    ):
        parts = "-statistics" * statistics + "-draw" * draw
        gates.append(
            Variant(
                "confidence",
                f"tiles-{dtype[1:]}{parts}",
                tile_statistics,
                {"logits": dtype, **signature},
                {"block": BLOCK, "race": RACE, "statistics": statistics, "draw": draw},
                ("logits", "temperatures", "partials", "width", "stride"),
                WARPS,
                elements=BLOCK,
                budget=budget,
                registers=112,
            )
        )
    for dtype, draw in product(("*bf16", "*fp32"), (False, True)):
        gates.append(
            Variant(
                "confidence",
                f"merge-{dtype[1:]}" + "-draw" * draw,
                merge_rows,
                merge_signature(dtype),
                {"block": BLOCK, "tile_lanes": tiles, "head": False, "draw": draw},
                ("logits", "partials", "head_rows", "stride"),
                MERGE_WARPS,
                elements=BLOCK + tiles,
                budget=60,
                wide=False,
                registers=168,
            )
        )
    return [*gates, *_score_variants(), *sampling.variants(shape)]


def _score_variants() -> list[Variant]:
    """Of the types that heads give. Targets lie anywhere: no load takes 16 bytes at once."""
    return [
        Variant(
            "confidence",
            f"score-{dtype[1:]}",
            score_targets,
            {
                "logits": dtype,
                "targets": "*i64",
                "peaks": "*fp32",
                "probs": "*fp32",
                "out": "*fp32",
                "count": "i32",
                "vocabulary": "i32",
                "stride": "i32",
                "target_stride": "i32",
            },
            {"block": SCORE_BLOCK},
            ("logits", "targets", "peaks", "probs", "out", "stride"),
            elements=SCORE_BLOCK,
            budget=35,
            wide=False,
            registers=64,
        )
        for dtype in ("*bf16", "*fp32")
    ]
