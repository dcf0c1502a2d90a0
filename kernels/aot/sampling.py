"""Gates of ``kernels.sampling``: part of those of ``kernels.confidence``."""

from __future__ import annotations

from itertools import product

from kernels.aot import candidates
from kernels.aot.variant import ModelShape, Variant
from kernels.sampling import CHUNK, LIST_CHUNK, LIST_WARPS, WARPS, draw_filtered_rows


def variants(shape: ModelShape) -> list[Variant]:
    """All filters at once, over lists and over rows; of bf16 logits, and of fp32 with penalties."""
    gates = candidates.variants(shape)
    for (dtype, shift), listed in product((("*bf16", 16), ("*fp32", 0)), (True, False)):
        signature = {
            "logits": dtype,
            "source": "*fp32" if listed else dtype,
            "temperatures": "*fp64",
            "keys": "*i64",
            "counters": "*i64",
            "top_ks": "*i64",
            "top_ps": "*fp64",
            "min_ps": "*fp64",
            "peaks": "*fp32",
            "probs": "*fp32",
            "argmax": "*i64",
            "valid": "*i8",
            "token": "*i64",
            "logprob": "*fp32",
            "ids": "*i32",
            "sizes": "*i32",
            "totals": "*fp64",
            "width": "i32",
            "vocabulary": "i32",
            "stride": "i32",
            "source_stride": "i32",
        }
        constants = {
            "has_top_k": True,
            "has_top_p": True,
            "has_min_p": True,
            "shift": shift,
            "listed": listed,
            "chunk": LIST_CHUNK if listed else CHUNK,
        }
        gates.append(
            Variant(
                "confidence",
                f"filters-{dtype[1:]}" + "-list" * listed,
                draw_filtered_rows,
                signature,
                constants,
                ("logits", "source", "width", "stride", "source_stride"),
                LIST_WARPS if listed else WARPS,
                elements=LIST_CHUNK if listed else CHUNK,
                budget=560 if listed else 300,
                registers=128,
            )
        )
    return gates
