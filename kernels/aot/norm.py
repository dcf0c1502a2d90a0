"""Gates of ``kernels.norm``."""

from __future__ import annotations

import triton

from kernels.aot.roofline import Roofline
from kernels.aot.variant import ModelShape, Variant
from kernels.norm import norm_kernel, warps_of


def roofline(rows: int, hidden: int, element_bytes: int = 2, add: bool = False) -> Roofline:
    """Reads x (and the residual), writes the norm (and x), reads the weight once."""
    streams = 4 if add else 2
    return Roofline((streams * rows + 1) * hidden * element_bytes, (4 + add) * rows * hidden)


def variants(shape: ModelShape) -> list[Variant]:
    """Both kernels at the model's hidden size in bf16."""
    block = triton.next_power_of_2(shape.hidden)
    return [
        Variant(
            op="norm",
            name=name,
            kernel=norm_kernel,
            signature={
                **dict.fromkeys(("x", "residual", "weight", "out"), "*bf16"),
                **dict.fromkeys(("hidden", "heads", "x_row_stride", "x_head_stride"), "i32"),
                "eps": "fp32",
            },
            constants={"add": add, "block": block},
            aligned=("x", "residual", "weight", "out", "hidden", "x_row_stride", "x_head_stride"),
            warps=warps_of(block),
            elements=shape.hidden,
            budget=28,
            registers=128,
        )
        for name, add in (("rms_norm", False), ("add_rms_norm", True))
    ]
