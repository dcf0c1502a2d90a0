"""Gates of ``kernels.packed_gemm``."""

from __future__ import annotations

import triton

from kernels.aot import skinny_gemm
from kernels.aot.roofline import Roofline
from kernels.aot.variant import ModelShape, Variant
from kernels.packed_config import Packing, plan
from kernels.packed_gemm import constants_of
from kernels.packed_kernel import packed_kernel
from kernels.skinny_config import Plan

# What large checkpoints mostly come in.
COMMON = (
    Packing("int4", 4, 128),
    Packing("int4_zeros", 4, 128, zeros=True),
    Packing("fp8_blocks", 8, 128, rows=128, eight=True),
)
# SASS instructions a weight, by bits, bytes of a row in a tile, and rows of a tile.
_BUDGETS = {
    (4, 128, 32): 9.0,
    (4, 128, 16): 11.0,
    (4, 64, 32): 12.5,
    (4, 64, 16): 15.0,
    (8, 128, 32): 12.5,
    (8, 128, 16): 14.5,
}


def roofline(
    rows: int, n: int, k: int, packing: Packing = COMMON[0], element_bytes: int = 2
) -> Roofline:
    """Reads codes, scales (fp8: 4 bytes, else 2) and zero points once and x, writes y."""
    grid = triton.cdiv(n, packing.rows) * triton.cdiv(k, packing.group or k)
    scales = (4 if packing.eight or packing.zeros else 2) * grid
    moved = n * k * packing.bits // 8 + scales + element_bytes * rows * (n + k)
    return Roofline(moved, 2 * rows * n * k)


def variants(shape: ModelShape) -> list[Variant]:
    """Each linear layer but the head, which no checkpoint packs, in the common packings."""
    gates = []
    for layer, (n, k) in skinny_gemm.linear_shapes(shape).items():
        for packing in COMMON if layer != "head" else ():
            name, chosen = f"{layer}_{packing.name}", plan(n, k, packing)
            gates.append(_product_variant(name, chosen, k, packing, layer == "qkv"))
            if chosen.splits > 1:
                merge = skinny_gemm.merge_variant(
                    "packed_gemm", f"{name}_merge", chosen.splits, False, layer == "qkv"
                )
                gates.append(merge)
    return gates


def _product_variant(name: str, chosen: Plan, k: int, packing: Packing, biased: bool) -> Variant:
    config, split, width = chosen.config, chosen.splits > 1, k * packing.bits // 8
    sizes = (
        "m_size",
        "n_size",
        "width",
        "x_stride",
        "group",
        "scale_rows",
        "row_stride",
        "group_stride",
        "blocks_per_split",
    )
    constants = {**constants_of(packing, chosen, width, biased), "upcast": False}
    # What launches pass as 1 is a constant there.
    ones = {"group_stride": 1} if packing.eight else {"scale_rows": 1, "row_stride": 1}
    stride = "scale_rows" if packing.eight else "group_stride"
    return Variant(
        op="packed_gemm",
        name=name,
        kernel=packed_kernel,
        signature={
            "x": "*bf16",
            "codes": "*fp8e4nv" if packing.eight else "*u8",
            "scale": "*fp32" if packing.eight else "*fp16",
            "zero": "*i16",
            "bias": "*bf16",
            "y": "*fp32" if split else "*bf16",
            **dict.fromkeys(sizes, "i32"),
        },
        constants=constants | ones,
        aligned=(
            "x",
            "codes",
            "scale",
            "zero",
            "bias",
            "y",
            "n_size",
            "width",
            "x_stride",
            "group",
            stride,
        ),
        warps=config.warps,
        stages=config.stages,
        elements=config.block_n * config.block_k * 8 // packing.bits,
        budget=_BUDGETS.get((packing.bits, config.block_k, config.block_n), 0.0),
        registers=200,
    )
