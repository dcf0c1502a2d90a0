"""The kernel of products with packed weights, and how it widens them; see ``packed_gemm``."""

from __future__ import annotations

import triton
import triton.language as tl

# Of four bytes: bf16 of 128 + a half byte has its bits in the low byte and 0x43 in the high one.
# Less 136 that is the half byte less 8, exactly. $0 to $3: low halves, then high ones; $4 and $5:
# ones, from here because operands that stem from bytes all lie alike, else x would be loaded twice.
WIDEN = """
{
.reg .b32 low, high, part<4>, less;
mov.b32 less, 0x43084308;
and.b32 low, $6, 0x0f0f0f0f;
shr.u32 high, $6, 4;
and.b32 high, high, 0x0f0f0f0f;
prmt.b32 part0, low, 0x43434343, 0x4140;
prmt.b32 part1, low, 0x43434343, 0x4342;
prmt.b32 part2, high, 0x43434343, 0x4140;
prmt.b32 part3, high, 0x43434343, 0x4342;
sub.rn.bf16x2 $0, part0, less;
sub.rn.bf16x2 $1, part1, less;
sub.rn.bf16x2 $2, part2, less;
sub.rn.bf16x2 $3, part3, less;
mov.b32 $4, 0x3f803f80;
mov.b32 $5, 0x3f803f80;
}
"""
_WIDEN = tl.constexpr(WIDEN)


@triton.jit
def _widen(
    codes: tl.tensor, dtype: tl.constexpr, middle: tl.constexpr, upcast: tl.constexpr
) -> tl.tensor:
    """Codes of 8 bits as numbers of ``dtype``, integers less their middle."""
    if upcast:
        return codes.to(tl.float32) - middle
    if middle == 0:
        return codes.to(dtype)
    return (codes.to(tl.float32) - middle).to(dtype)


@triton.jit
def _halves(
    codes: tl.tensor, dtype: tl.constexpr, upcast: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Low and high half bytes as numbers of ``dtype``, less 8, and as many ones."""
    if dtype == tl.bfloat16 and not upcast:
        near, far, ones = tl.inline_asm_elementwise(
            _WIDEN,
            "=&r,=&r,=&r,=&r,=&r,=&r,r",
            [codes],
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=4,
        )
        return near, far, ones
    near, far = _widen(codes & 15, dtype, 8, upcast), _widen(codes >> 4, dtype, 8, upcast)
    return near, far, tl.full(near.shape, 1.0, near.dtype)


@triton.jit
def _tile(
    w: tl.tensor,
    x: tl.tensor,
    scale: tl.tensor,
    zero: tl.tensor,
    ones: tl.tensor,
    zeroed: tl.constexpr,
    upcast: tl.constexpr,
) -> tl.tensor:
    """What a tile of one group adds: fp32 [block_n, rows].

    Args:
        w: [block_n, block_k], and ones likewise. x: [block_k, rows].
        scale: fp32 [block_n], and zero likewise if ``zeroed``.
    """
    if upcast:
        x = x.to(tl.float32)
    part = tl.dot(w, x, input_precision="ieee")
    if zeroed:
        part -= zero[:, None] * tl.dot(ones, x, input_precision="ieee")
    return part * scale[:, None]


@triton.jit(do_not_specialize=("m_size",))
def packed_kernel(
    x: tl.tensor,
    codes: tl.tensor,
    scale: tl.tensor,
    zero: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    m_size: tl.tensor,
    n_size: tl.tensor,
    width: tl.tensor,
    x_stride: tl.tensor,
    group: tl.tensor,
    scale_rows: tl.tensor,
    row_stride: tl.tensor,
    group_stride: tl.tensor,
    blocks_per_split: tl.tensor,
    bits: tl.constexpr,
    middle: tl.constexpr,
    zeroed: tl.constexpr,
    biased: tl.constexpr,
    even_k: tl.constexpr,
    upcast: tl.constexpr,
    rows: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
) -> None:
    """``block_n`` columns of y for all its rows, over one split of K. Grid: (tiles of N, splits).

    Scales and zero points are loaded a tile ahead, by their groups. Of 4 bits, a tile of bytes is
    two of weights: the near one, and the far one ``width`` columns of x further on.

    Args:
        x: [m_size, K], rows ``x_stride`` apart.
        codes: [n_size, width], in bytes.
        scale: of ``scale_rows`` rows and ``group`` columns, at ``row_stride`` and ``group_stride``.
        zero: like scale, read if ``zeroed``; bias: [n_size], read if ``biased``.
        y: [m_size, n_size]; where K is split fp32 [splits, m_size, n_size], the partial sums.
        blocks_per_split: of ``block_k`` bytes of a row.
        bits: of a weight, 4 or 8.
        middle: of the codes' range, taken off them; 0 for fp8.
        even_k: whether ``block_k`` divides ``width``.
        upcast: where a product of half-precision operands is not to be had (the interpreter).
        rows: ``m_size`` padded.
    """
    tile, split = tl.program_id(0), tl.program_id(1)
    n = tile * block_n + tl.arange(0, block_n)
    m = tl.arange(0, rows)
    k = tl.arange(0, block_k)
    inside_m = m < m_size
    first = split * blocks_per_split
    last = tl.minimum(first + blocks_per_split, tl.cdiv(width, block_k))
    # Rows past the end read the last one again: no mask in the loop, and nothing of it is stored.
    row = tl.minimum(n, n_size - 1)
    w_at = codes + row.to(tl.int64)[:, None] * width + (k + first * block_k)[None, :]
    x_at = x + m.to(tl.int64)[None, :] * x_stride + (k + first * block_k)[:, None]
    at = row // scale_rows * row_stride
    total = tl.zeros((block_n, rows), tl.float32)
    near_at = at + first * block_k // group * group_stride
    next_near_scale = tl.load(scale + near_at)
    next_near_zero = next_near_scale
    if zeroed:
        next_near_zero = tl.load(zero + near_at)
    if bits == 4:
        far_at = at + (first * block_k + width) // group * group_stride
        next_far_scale = tl.load(scale + far_at)
        next_far_zero = next_far_scale
        if zeroed:
            next_far_zero = tl.load(zero + far_at)
    for block in range(first, last):
        if even_k:
            packed = tl.load(w_at, eviction_policy="evict_first")
            inside = inside_m[None, :]
        else:
            inside_k = k < width - block * block_k
            packed = tl.load(w_at, mask=inside_k[None, :], other=0.0)
            inside = inside_m[None, :] & inside_k[:, None]
        near_x = tl.load(x_at, mask=inside, other=0.0)
        following = tl.minimum(block + 1, last - 1) * block_k
        near_scale, near_zero = next_near_scale.to(tl.float32), 0.0
        near_at = at + following // group * group_stride
        next_near_scale = tl.load(scale + near_at)
        if zeroed:
            near_zero = next_near_zero.to(tl.float32) - middle
            next_near_zero = tl.load(zero + near_at)
        if bits == 4:
            far_x = tl.load(x_at + width, mask=inside, other=0.0)
            far_scale, far_zero = next_far_scale.to(tl.float32), 0.0
            far_at = at + (following + width) // group * group_stride
            next_far_scale = tl.load(scale + far_at)
            if zeroed:
                far_zero = next_far_zero.to(tl.float32) - middle
                next_far_zero = tl.load(zero + far_at)
            near, far, ones = _halves(packed, near_x.dtype, upcast)
            total += _tile(near, near_x, near_scale, near_zero, ones, zeroed, upcast)
            total += _tile(far, far_x, far_scale, far_zero, ones, zeroed, upcast)
        else:
            near = _widen(packed, near_x.dtype, middle, upcast)
            ones = tl.full(near.shape, 1.0, near.dtype)
            total += _tile(near, near_x, near_scale, near_zero, ones, zeroed, upcast)
        w_at += block_k
        x_at += block_k
    if biased:
        total += tl.load(bias + row).to(tl.float32)[:, None]
    y_at = y + (split * m_size + m).to(tl.int64)[None, :] * n_size + n[:, None]
    tl.store(y_at, total.to(y.dtype.element_ty), mask=(n < n_size)[:, None] & inside_m[None, :])
