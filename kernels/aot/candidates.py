"""Gates of ``kernels.candidates``: part of those of ``kernels.confidence``."""

from __future__ import annotations

import triton

from kernels.aot.variant import ModelShape, Variant
from kernels.candidates import BLOCK, MOST, RUNGS, WARPS, count_rungs, gather_candidates


def variants(shape: ModelShape) -> list[Variant]:
    """Both kernels with all filters, after the statistics' tiles, in bf16 and with penalties."""
    tiles = triton.next_power_of_2(triton.cdiv(shape.head_rows, BLOCK))
    rest = {
        "partials": "*fp32",
        "temperatures": "*fp64",
        "top_ks": "*i64",
        "top_ps": "*fp64",
        "min_ps": "*fp64",
        "valid": "*i8",
        "counts": "*i32",
        "masses": "*fp32",
        "values": "*fp32",
        "found": "*i32",
        "sizes": "*i32",
        "totals": "*fp64",
        **dict.fromkeys(("rows", "peaks", "width", "vocabulary", "stride"), "i32"),
    }
    constants = {
        "has_top_k": True,
        "has_top_p": True,
        "has_min_p": True,
        "peak_lanes": 128,
        "block": BLOCK,
        "rungs": RUNGS,
        "tile_lanes": tiles,
        "most": MOST,
    }
    gates = []
    for dtype in ("*bf16", "*fp32"):
        for kernel, budget in ((count_rungs, 90), (gather_candidates, 90)):
            names = kernel.arg_names
            gates.append(
                Variant(
                    "confidence",
                    f"{kernel.__name__}-{dtype[1:]}",
                    kernel,
                    {k: v for k, v in ({"source": dtype} | rest).items() if k in names},
                    {k: v for k, v in constants.items() if k in names},
                    ("source", "width", "stride"),
                    WARPS,
                    elements=BLOCK,
                    budget=budget,
                )
            )
    return gates
