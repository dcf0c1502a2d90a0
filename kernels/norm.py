"""RMSNorm, alone and with the residual's addition in front of it.

    rms_norm:      out = weight * to(x * rsqrt(mean(x^2) + eps))
    add_rms_norm:  x = to(x + residual), written back, then out = rms_norm(x)

x and residual are [rows, hidden] or [rows, heads, head_dim] in fp32, bf16 or fp16, hidden (or
head_dim) at most 16384; ``to`` rounds to their type; statistics are fp32. One program a row, which
it reads once and keeps in registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.checks import check_device, check_eps, check_tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
WIDEST = 16384


@triton.jit
def norm_kernel(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    hidden: tl.tensor,
    heads: tl.tensor,
    x_row_stride: tl.tensor,
    x_head_stride: tl.tensor,
    eps: tl.tensor,
    add: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """One norm of ``hidden`` columns. Grid: (rows * heads,). See the head of this file.

    add: to ``x`` the residual first; then both are contiguous. block: a power of two, at least
    ``hidden``.
    """
    program = tl.program_id(0).to(tl.int64)
    row, head = program // heads, program % heads
    columns = tl.arange(0, block)
    inside = columns < hidden
    x_at = x + row * x_row_stride + head * x_head_stride + columns
    value = tl.load(x_at, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    element = x.dtype.element_ty
    if add:
        added = tl.load(residual + program * hidden + columns, mask=inside, other=0.0)
        # The sum is rounded before its statistics, as if it had been stored and read again.
        rounded = (value + added.to(tl.float32)).to(element)
        tl.store(x_at, rounded, mask=inside)
        value = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 0) / hidden + eps)
    normed = (value * scale).to(element).to(tl.float32)
    tl.store(out + program * hidden + columns, (normed * factor).to(element), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / rms(x) * weight`` over the last dimension.

    Args:
        x: [rows, hidden] or [rows, heads, head_dim]; only the last dimension must be dense, so
            that heads may be a slice of a fused projection.
        weight: [hidden] (or [head_dim]), of x's type.
        eps: added to the mean square.

    Returns:
        Like x, contiguous.
    """
    _check(x, weight, eps, contiguous=False)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, None, weight, out, eps)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Add ``residual`` to ``x`` in place and return the norm of the sum.

    Args:
        x: [rows, hidden], contiguous; written.
        residual: likewise, of x's type.
        weight: [hidden], of x's type.
        eps: added to the mean square.
    """
    _check(x, weight, eps, contiguous=True)
    check_tensor("residual", residual, x.shape, (x.dtype,), like=x)
    out = torch.empty_like(x)
    _launch(x, residual, weight, out, eps)
    return out


def _check(x: Tensor, weight: Tensor, eps: float, contiguous: bool) -> None:
    if x.ndim not in (2, 3):
        raise ValueError(
            f"x must be [rows, hidden] or [rows, heads, head_dim], got {list(x.shape)}"
        )
    check_tensor("x", x, (None,) * x.ndim, FLOATS, contiguous=contiguous)
    if not 1 <= x.shape[-1] <= WIDEST:
        raise ValueError(f"x must have 1 to {WIDEST} columns, got {x.shape[-1]}")
    check_tensor("weight", weight, (x.shape[-1],), (x.dtype,), like=x)
    check_device("x", x, norm_kernel)
    check_eps(eps)


def warps_of(block: int) -> int:
    """16 to 32 elements a thread: wide loads, and the row still fits the registers."""
    return min(16, max(1, block // 512))


def _launch(x: Tensor, residual: Tensor | None, weight: Tensor, out: Tensor, eps: float) -> None:
    hidden = x.shape[-1]
    heads = x.shape[1] if x.ndim == 3 else 1
    programs = x.shape[0] * heads
    if not programs:
        return
    block = max(16, triton.next_power_of_2(hidden))
    head_stride = x.stride(1) if x.ndim == 3 else 0
    norm_kernel[(programs,)](
        x,
        residual if residual is not None else x,
        weight,
        out,
        hidden,
        heads,
        x.stride(0),
        head_stride,
        eps,
        add=residual is not None,
        block=block,
        num_warps=warps_of(block),
    )
