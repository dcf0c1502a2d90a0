"""The gated activation: ``out = silu(gate) * up``.

gate_up is [rows, 2 * width] in fp32, bf16 or fp16, gate its first half and up its second; out is
[rows, width] of the same type. Computed in fp32, rounded once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.checks import check_device, check_tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
BLOCK = 1024  # 8 columns a thread: one load of 16 bytes from either half in bf16
WARPS = 4


@triton.jit
def silu_mul_kernel(
    gate_up: tl.tensor, out: tl.tensor, width: tl.tensor, row_stride: tl.tensor, block: tl.constexpr
) -> None:
    """``block`` columns of one row of ``out``. Grid: (tiles of columns, rows)."""
    row = tl.program_id(1).to(tl.int64)
    columns = tl.program_id(0) * block + tl.arange(0, block)
    inside = columns < width
    gate_at = gate_up + row * row_stride + columns
    gate = tl.load(gate_at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_at + width, mask=inside, other=0.0).to(tl.float32)
    # exp overflows to inf for gates below -88: the quotient is then -0, as it should be.
    value = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * width + columns, value.to(out.dtype.element_ty), mask=inside)


def silu_mul(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up``.

    Args:
        gate_up: [rows, 2 * width]; only the last dimension must be dense.

    Returns:
        [rows, width] of its type.
    """
    check_tensor("gate_up", gate_up, (None, None), FLOATS, contiguous=False)
    check_device("gate_up", gate_up, silu_mul_kernel)
    rows, both = gate_up.shape
    if both % 2 or not both:
        raise ValueError(f"gate_up must have an even number of columns above 0, got {both}")
    width = both // 2
    out = torch.empty((rows, width), dtype=gate_up.dtype, device=gate_up.device)
    for first in range(0, rows, 65535):  # the most that a grid's second dimension holds
        part, target = gate_up[first : first + 65535], out[first : first + 65535]
        silu_mul_kernel[(triton.cdiv(width, BLOCK), part.shape[0])](
            part, target, width, gate_up.stride(0), block=BLOCK, num_warps=WARPS
        )
    return out
