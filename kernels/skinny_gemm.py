"""Linear layers of few rows: ``y[M, N] = x[M, K] @ w[N, K]^T (* scale[N]) (+ bias[N])``, M <= 16.

x is fp32, bf16 or fp16; w is of x's type, or fp8 (e4m3) with one fp32 scale a row; y is of x's
type; sums are fp32. So few rows are bound by streaming w once, so tiles are weights first: w fills
the long side of the matrix instruction and the rows of x, padded to 16, its short side. One
configuration serves M = 1..16: a row's result is bitwise the same whatever its neighbours are.

Where N gives too few tiles to keep all SMs loading, K is split too: each split stores its partial
sums [SPLITS, M, N], and a second kernel adds them in order. No atomics: results repeat bitwise.

More rows, or another device, are for the vendor's library: the caller chooses.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

from kernels.checks import check_device, check_tensor
from kernels.skinny_config import plan

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
FP8 = torch.float8_e4m3fn
ROWS = 16  # the padded M
MERGE_BLOCK = 1024


@triton.jit(do_not_specialize=("m_size",))
def skinny_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    scale: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    m_size: tl.tensor,
    n_size: tl.tensor,
    k_size: tl.tensor,
    x_stride: tl.tensor,
    blocks_per_split: tl.tensor,
    partial: tl.constexpr,
    scaled: tl.constexpr,
    biased: tl.constexpr,
    even_k: tl.constexpr,
    upcast: tl.constexpr,
    rows: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
) -> None:
    """``block_n`` columns of y for all its rows, over one split of K. Grid: (tiles of N, splits).

    Args:
        x: [m_size, k_size], rows ``x_stride`` apart.
        weight: [n_size, k_size].
        scale: fp32 [n_size], read if ``scaled``; bias: [n_size], read if ``biased``.
        y: [m_size, n_size]; if ``partial`` fp32 [splits, m_size, n_size], the partial sums.
        blocks_per_split: of ``block_k`` columns of K.
        even_k: whether ``block_k`` divides ``k_size``.
        upcast: where a product of half-precision operands is not to be had (the interpreter).
        rows: ``m_size`` padded.
    """
    tile, split = tl.program_id(0), tl.program_id(1)
    n = tile * block_n + tl.arange(0, block_n)
    m = tl.arange(0, rows)
    k = tl.arange(0, block_k)
    inside_m = m < m_size
    first = split * blocks_per_split
    last = tl.minimum(first + blocks_per_split, tl.cdiv(k_size, block_k))
    # Rows past the end read the last one again: no mask in the loop, and nothing of it is stored.
    row = tl.minimum(n, n_size - 1).to(tl.int64)
    w_at = weight + row[:, None] * k_size + (k + first * block_k)[None, :]
    x_at = x + m.to(tl.int64)[None, :] * x_stride + (k + first * block_k)[:, None]
    total = tl.zeros((block_n, rows), tl.float32)
    for block in range(first, last):
        if even_k:
            w_tile = tl.load(w_at, eviction_policy="evict_first")
            x_tile = tl.load(x_at, mask=inside_m[None, :], other=0.0)
        else:
            left = k_size - block * block_k
            w_tile = tl.load(w_at, mask=(k < left)[None, :], other=0.0)
            x_tile = tl.load(x_at, mask=inside_m[None, :] & (k < left)[:, None], other=0.0)
        if upcast:
            w_wide, x_wide = w_tile.to(tl.float32), x_tile.to(tl.float32)
            total = tl.dot(w_wide, x_wide, total, input_precision="ieee")
        else:
            total = tl.dot(w_tile.to(x_tile.dtype), x_tile, total, input_precision="ieee")
        w_at += block_k
        x_at += block_k
    inside = (n < n_size)[:, None] & inside_m[None, :]
    y_at = y + (split * m_size + m).to(tl.int64)[None, :] * n_size + n[:, None]
    if not partial:
        if scaled:
            total *= tl.load(scale + n, mask=n < n_size, other=0.0)[:, None]
        if biased:
            total += tl.load(bias + n, mask=n < n_size, other=0.0).to(tl.float32)[:, None]
    tl.store(y_at, total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def merge_kernel(
    parts: tl.tensor,
    scale: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    n_size: tl.tensor,
    splits: tl.constexpr,
    scaled: tl.constexpr,
    biased: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Adds the splits in order, then scale, bias and rounding. Grid: (tiles of N, M).

    parts: fp32 [splits, M, n_size]. scale, bias, y: as in ``skinny_kernel``.
    """
    m = tl.program_id(1).to(tl.int64)
    size = tl.num_programs(1).to(tl.int64) * n_size
    n = tl.program_id(0) * block + tl.arange(0, block)
    inside = n < n_size
    at = parts + m * n_size + n
    total = tl.load(at, mask=inside, other=0.0)
    for split in tl.static_range(1, splits):
        total += tl.load(at + split * size, mask=inside, other=0.0)
    if scaled:
        total *= tl.load(scale + n, mask=inside, other=0.0)
    if biased:
        total += tl.load(bias + n, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + m * n_size + n, total.to(y.dtype.element_ty), mask=inside)


@cache
def hopper(device: torch.device) -> bool:
    """Whether it is the kind of card that the tiles were chosen and checked for."""
    return torch.version.hip is None and torch.cuda.get_device_capability(device)[0] == 9


def skinny_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, scale: Tensor | None = None
) -> Tensor:
    """``x @ weight^T * scale + bias`` for M <= 16. x's rows may be strided; the rest is contiguous.

    Args:
        x: [M, K].
        weight: [N, K] of x's type, or float8_e4m3fn with ``scale``.
        bias: [N] of x's type.
        scale: [N] fp32, of the weight's rows.
    """
    _check(x, weight, bias, scale)
    (m, k), n = x.shape, weight.shape[0]
    y = torch.empty((m, n), dtype=x.dtype, device=x.device)
    if not m:
        return y
    chosen = plan(n, k, weight.element_size())
    split = chosen.splits > 1
    out = torch.empty((chosen.splits, m, n), dtype=torch.float32, device=x.device) if split else y
    config = chosen.config
    scale_at, bias_at = (w if w is not None else y for w in (scale, bias))
    skinny_kernel[(triton.cdiv(n, config.block_n), chosen.splits)](
        x,
        weight,
        scale_at,
        bias_at,
        out,
        m,
        n,
        k,
        x.stride(0),
        chosen.blocks_per_split,
        partial=split,
        scaled=scale is not None and not split,
        biased=bias is not None and not split,
        even_k=k % config.block_k == 0,
        upcast=bool(knobs.runtime.interpret),
        rows=ROWS,
        block_n=config.block_n,
        block_k=config.block_k,
        num_warps=config.warps,
        num_stages=config.stages,
    )
    if split:
        merge(out, y, scale, bias)
    return y


def merge(parts: Tensor, y: Tensor, scale: Tensor | None, bias: Tensor | None) -> None:
    """Adds partial sums [SPLITS, M, N] in order, then scale, bias and rounding, into y [M, N]."""
    (m, n), (scale_at, bias_at) = y.shape, (w if w is not None else y for w in (scale, bias))
    merge_kernel[(triton.cdiv(n, MERGE_BLOCK), m)](
        parts,
        scale_at,
        bias_at,
        y,
        n,
        splits=len(parts),
        scaled=scale is not None,
        biased=bias is not None,
        block=MERGE_BLOCK,
        num_warps=4,
    )


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> None:
    check_tensor("x", x, (None, None), FLOATS, contiguous=False)
    check_device("x", x, skinny_kernel)
    m, k = x.shape
    if m > ROWS:
        raise ValueError(f"x must have at most {ROWS} rows, got {m}")
    check_tensor("weight", weight, (None, k), (x.dtype, FP8), like=x)
    n = weight.shape[0]
    if not n or not k:
        raise ValueError(f"weight must not be empty, got {list(weight.shape)}")
    if bias is not None:
        check_tensor("bias", bias, (n,), (x.dtype,), like=x)
    if (weight.dtype == FP8) != (scale is not None):
        raise ValueError("scale must be given with fp8 weights, and only with them")
    if scale is not None:
        check_tensor("scale", scale, (n,), (torch.float32,), like=x)
