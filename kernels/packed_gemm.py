"""Products of few rows with packed weights: ``y[M, N] = x[M, K] @ w[N, K]^T (+ bias[N])``, M <= 16.

w is an ``IntWeight`` of 4 or 8 bits in groups, or an ``Fp8Weight`` with a scale a block. Codes are
widened in registers, exactly: integers less the middle of their range. A tile lies within one group
of columns, so its scale is applied once to what the tile added up in fp32, and a zero point to the
sum of x, which the matrix unit forms as a product with ones. So the weights are never rounded.

Else as in ``skinny_gemm``: weights are the long side, one configuration serves M = 1..16, splits of
K are added in order by a second kernel. The two halves of a row lie in the two halves of its bytes:
a tile of bytes is two tiles of weights, each beside a run of x.

More rows, other devices and groups that no tile fits into (``takes``) are for the caller, which
dequantises slab by slab for the vendor's library.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from triton import knobs

from kernels import skinny_gemm
from kernels.checks import check_device, check_tensor
from kernels.floor import Floor
from kernels.packed_config import COMMON, Packing, block_of, plan
from kernels.packed_kernel import packed_kernel
from kernels.skinny_config import Plan
from kernels.skinny_gemm import FLOATS, FP8, ROWS
from kernels.types.weights import Fp8Weight, IntWeight
from kernels.variant import ModelShape, Variant


def packing_of(weight: Fp8Weight | IntWeight) -> Packing:
    """How a weight is packed."""
    if isinstance(weight, Fp8Weight):
        return Packing("fp8", 8, weight.block[1], weight.block[0], eight=True)
    return Packing("int", weight.bits, weight.group, zeros=weight.zero is not None)


def takes(weight: Fp8Weight | IntWeight) -> bool:
    """Whether tiles fit into the groups of a weight: into those of every common checkpoint."""
    return block_of(packing_of(weight), weight.shape[1]) > 0


def packed_product(x: Tensor, weight: Fp8Weight | IntWeight, bias: Tensor | None = None) -> Tensor:
    """``x @ weight^T + bias``. x's rows may be strided; the rest is contiguous.

    Args:
        x: [M, K], M <= 16.
        weight: [N, K], one that ``takes`` says yes to.
        bias: [N] of x's type.
    """
    _check(x, weight, bias)
    (n, k), packing = weight.shape, packing_of(weight)
    x, m = weight.arranged(x), len(x)
    y = torch.empty((m, n), dtype=x.dtype, device=x.device)
    if not m:
        return y
    chosen = plan(n, k, packing)
    config, split = chosen.config, chosen.splits > 1
    out = torch.empty((chosen.splits, m, n), dtype=torch.float32, device=x.device) if split else y
    zero = weight.zero if isinstance(weight, IntWeight) else None
    strides = weight.scale.stride() if packing.eight else weight.scale.stride()[::-1]
    width = weight.codes.shape[1]
    packed_kernel[(triton.cdiv(n, config.block_n), chosen.splits)](
        x, weight.codes, weight.scale, weight.scale if zero is None else zero,
        y if bias is None else bias, out, m, n, width, x.stride(0), packing.group, packing.rows,
        *strides, chosen.blocks_per_split, **_constants(packing, chosen, width, bias is not None),
        UPCAST=bool(knobs.runtime.interpret),
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    if split:
        skinny_gemm.merge(out, y, None, bias)
    return y


def _constants(packing: Packing, chosen: Plan, width: int, biased: bool) -> dict[str, int | bool]:
    config = chosen.config
    return {
        "BITS": packing.bits, "MIDDLE": 0 if packing.eight else 1 << (packing.bits - 1),
        "ZEROED": packing.zeros, "BIASED": biased and chosen.splits == 1,
        "EVEN": width % config.block_k == 0, "ROWS": ROWS, "BLOCK_N": config.block_n,
        "BLOCK": config.block_k,
    }  # fmt: skip


def _check(x: Tensor, weight: Fp8Weight | IntWeight, bias: Tensor | None) -> None:
    check_tensor("x", x, (None, None), FLOATS, contiguous=False)
    check_device("x", x, packed_kernel)
    if len(x) > ROWS:
        raise ValueError(f"x must have at most {ROWS} rows, got {len(x)}")
    (n, k), fp8 = weight.shape, isinstance(weight, Fp8Weight)
    if not n or not k:
        raise ValueError(f"weight must not be empty, got {[n, k]}")
    if x.shape[1] != k:
        raise ValueError(f"x must have shape [*, {k}], got {list(x.shape)}")
    codes = FP8 if fp8 else torch.uint8
    check_tensor("weight.codes", weight.codes, (n, None), (codes,), like=x)
    if isinstance(weight, Fp8Weight):
        grid = tuple(triton.cdiv(*pair) for pair in zip((n, k), weight.block, strict=True))
        check_tensor("weight.scale", weight.scale, grid, (torch.float32,), like=x)
    else:
        grid = (triton.cdiv(k, weight.group), n)
        check_tensor("weight.scale", weight.scale, grid, FLOATS, like=x)
        if weight.zero is not None:
            check_tensor("weight.zero", weight.zero, grid, (torch.int16,), like=x)
        if weight.order is not None:
            check_tensor("weight.order", weight.order, (k,), (torch.int32,), like=x)
    if not takes(weight):
        raise ValueError("weight must have groups of a multiple of 16 columns that cut its halves")
    if bias is not None:
        check_tensor("bias", bias, (n,), (x.dtype,), like=x)


def floor(rows: int, n: int, k: int, packing: Packing = COMMON[0], element_bytes: int = 2) -> Floor:
    """Reads codes, scales (fp8: 4 bytes, else 2) and zero points once and x, writes y."""
    grid = triton.cdiv(n, packing.rows) * triton.cdiv(k, packing.group or k)
    scales = (4 if packing.eight or packing.zeros else 2) * grid
    moved = n * k * packing.bits // 8 + scales + element_bytes * rows * (n + k)
    return Floor(moved, 2 * rows * n * k)


def variants(shape: ModelShape) -> list[Variant]:
    """Each linear layer but the head, which no checkpoint packs, in the common packings."""
    found = []
    for layer, (n, k) in skinny_gemm.shapes(shape).items():
        for packing in COMMON if layer != "head" else ():
            name, chosen = f"{layer}_{packing.name}", plan(n, k, packing)
            found.append(_product_variant(name, chosen, k, packing, layer == "qkv"))
            if chosen.splits > 1:
                merge = skinny_gemm.merge_variant(
                    "packed_gemm", f"{name}_merge", chosen.splits, False, layer == "qkv"
                )
                found.append(merge)
    return found


def _product_variant(name: str, chosen: Plan, k: int, packing: Packing, biased: bool) -> Variant:
    config, split, width = chosen.config, chosen.splits > 1, k * packing.bits // 8
    sizes = (
        "m_size", "n_size", "width", "x_stride", "group", "scale_rows", "row_stride",
        "group_stride", "blocks_per_split",
    )  # fmt: skip
    constants = {**_constants(packing, chosen, width, biased), "UPCAST": False}
    # What launches pass as 1 is a constant there.
    ones = {"group_stride": 1} if packing.eight else {"scale_rows": 1, "row_stride": 1}
    stride = "scale_rows" if packing.eight else "group_stride"
    return Variant(
        op="packed_gemm",
        name=name,
        kernel=packed_kernel,
        signature={
            "x_ptr": "*bf16", "codes_ptr": "*fp8e4nv" if packing.eight else "*u8",
            "scale_ptr": "*fp32" if packing.eight else "*fp16", "zero_ptr": "*i16",
            "bias_ptr": "*bf16", "y_ptr": "*fp32" if split else "*bf16",
            **dict.fromkeys(sizes, "i32"),
        },
        constants=constants | ones,
        aligned=(
            "x_ptr", "codes_ptr", "scale_ptr", "zero_ptr", "bias_ptr", "y_ptr", "n_size", "width",
            "x_stride", "group", stride,
        ),
        warps=config.warps,
        stages=config.stages,
        elements=config.block_n * config.block_k * 8 // packing.bits,
        budget=config.budget,
        registers=200,
    )  # fmt: skip
