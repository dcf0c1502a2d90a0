"""Gates of ``kernels.silu_mul``."""

from __future__ import annotations

from kernels.aot.roofline import Roofline
from kernels.aot.variant import ModelShape, Variant
from kernels.silu_mul import BLOCK, WARPS, silu_mul_kernel


def roofline(rows: int, width: int, element_bytes: int = 2) -> Roofline:
    """Reads both halves and writes one; about five operations an element."""
    return Roofline(3 * rows * width * element_bytes, 5 * rows * width)


def variants(shape: ModelShape) -> list[Variant]:
    """The kernel in bf16; it does not depend on the model as long as widths are aligned."""
    assert shape.feed_forward % 16 == 0
    return [
        Variant(
            op="silu_mul",
            name="silu_mul",
            kernel=silu_mul_kernel,
            signature={"gate_up": "*bf16", "out": "*bf16", "width": "i32", "row_stride": "i32"},
            constants={"block": BLOCK},
            aligned=("gate_up", "out", "width", "row_stride"),
            warps=WARPS,
            elements=BLOCK,
            budget=40,
            registers=64,
        )
    ]
