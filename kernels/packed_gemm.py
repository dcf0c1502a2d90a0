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
from kernels.packed_config import Packing, block_of, plan
from kernels.packed_kernel import packed_kernel
from kernels.skinny_config import Plan
from kernels.skinny_gemm import FLOATS, FP8, ROWS
from kernels.types.weights import Fp8Weight, IntWeight


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
        x,
        weight.codes,
        weight.scale,
        weight.scale if zero is None else zero,
        y if bias is None else bias,
        out,
        m,
        n,
        width,
        x.stride(0),
        packing.group,
        packing.rows,
        *strides,
        chosen.blocks_per_split,
        **constants_of(packing, chosen, width, bias is not None),
        upcast=bool(knobs.runtime.interpret),
        num_warps=config.warps,
        num_stages=config.stages,
    )
    if split:
        skinny_gemm.merge(out, y, None, bias)
    return y


def constants_of(packing: Packing, chosen: Plan, width: int, biased: bool) -> dict[str, int | bool]:
    """Compile-time constants of the kernel for rows of ``width`` columns."""
    config = chosen.config
    return {
        "bits": packing.bits,
        "middle": 0 if packing.eight else 1 << (packing.bits - 1),
        "zeroed": packing.zeros,
        "biased": biased and chosen.splits == 1,
        "even_k": width % config.block_k == 0,
        "rows": ROWS,
        "block_n": config.block_n,
        "block_k": config.block_k,
    }


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
