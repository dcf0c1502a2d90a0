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
def _widen(codes, DTYPE: tl.constexpr, MIDDLE: tl.constexpr, UPCAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """Codes of 8 bits as numbers of DTYPE, integers less their middle."""
    if UPCAST:  # the interpreter cannot multiply matrices of bf16
        return codes.to(tl.float32) - MIDDLE
    if MIDDLE == 0:
        return codes.to(DTYPE)
    return (codes.to(tl.float32) - MIDDLE).to(DTYPE)


@triton.jit
def _halves(codes, DTYPE: tl.constexpr, UPCAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """Low and high half bytes as numbers of DTYPE, less 8, and as many ones."""
    if tl.bfloat16 == DTYPE and not UPCAST:
        return tl.inline_asm_elementwise(
            _WIDEN, "=&r,=&r,=&r,=&r,=&r,=&r,r", [codes],
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16), is_pure=True, pack=4,
        )  # fmt: skip
    near, far = _widen(codes & 15, DTYPE, 8, UPCAST), _widen(codes >> 4, DTYPE, 8, UPCAST)
    return near, far, tl.full(near.shape, 1.0, near.dtype)


@triton.jit
def _tile(w, x, scale, zero, ones, ZEROED: tl.constexpr, UPCAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """What a tile of one group adds: [BLOCK_N, ROWS]."""
    if UPCAST:
        x = x.to(tl.float32)
    part = tl.dot(w, x, input_precision="ieee")
    if ZEROED:
        part -= zero[:, None] * tl.dot(ones, x, input_precision="ieee")
    return part * scale[:, None]


@triton.jit(do_not_specialize=("m_size",))
def packed_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    codes_ptr,
    scale_ptr,
    zero_ptr,
    bias_ptr,
    y_ptr,
    m_size,
    n_size,
    width,
    x_stride,
    group,
    scale_rows,
    row_stride,
    group_stride,
    blocks_per_split,
    BITS: tl.constexpr,
    MIDDLE: tl.constexpr,
    ZEROED: tl.constexpr,
    BIASED: tl.constexpr,
    EVEN: tl.constexpr,
    UPCAST: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Grid: (tiles of N, splits of K). Rows of w are of `width` bytes. Where K is split, y is
    # the fp32 partial sums. Scales and zero points are loaded a tile ahead, by their groups.
    tile, split = tl.program_id(0), tl.program_id(1)
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, ROWS)
    k = tl.arange(0, BLOCK)
    inside_m = m < m_size
    first = split * blocks_per_split
    last = tl.minimum(first + blocks_per_split, tl.cdiv(width, BLOCK))
    # Rows past the end read the last one again: no mask in the loop, and nothing of it is stored.
    row = tl.minimum(n, n_size - 1)
    w_at = codes_ptr + row.to(tl.int64)[:, None] * width + (k + first * BLOCK)[None, :]
    x_at = x_ptr + m.to(tl.int64)[None, :] * x_stride + (k + first * BLOCK)[:, None]
    at = row // scale_rows * row_stride
    total = tl.zeros((BLOCK_N, ROWS), tl.float32)
    low = at + first * BLOCK // group * group_stride
    next_scale = tl.load(scale_ptr + low)
    next_zero = next_scale
    if ZEROED:
        next_zero = tl.load(zero_ptr + low)
    if BITS == 4:
        high = at + (first * BLOCK + width) // group * group_stride
        next_other = tl.load(scale_ptr + high)
        next_below = next_other
        if ZEROED:
            next_below = tl.load(zero_ptr + high)
    for block in range(first, last):
        if EVEN:
            codes = tl.load(w_at, eviction_policy="evict_first")
            inside = inside_m[None, :]
        else:
            inside_k = k < width - block * BLOCK
            codes = tl.load(w_at, mask=inside_k[None, :], other=0.0)
            inside = inside_m[None, :] & inside_k[:, None]
        x = tl.load(x_at, mask=inside, other=0.0)
        following = tl.minimum(block + 1, last - 1) * BLOCK
        scale, zero = next_scale.to(tl.float32), 0.0
        low = at + following // group * group_stride
        next_scale = tl.load(scale_ptr + low)
        if ZEROED:
            zero = next_zero.to(tl.float32) - MIDDLE
            next_zero = tl.load(zero_ptr + low)
        if BITS == 4:
            y = tl.load(x_at + width, mask=inside, other=0.0)
            other, below = next_other.to(tl.float32), 0.0
            high = at + (following + width) // group * group_stride
            next_other = tl.load(scale_ptr + high)
            if ZEROED:
                below = next_below.to(tl.float32) - MIDDLE
                next_below = tl.load(zero_ptr + high)
            near, far, ones = _halves(codes, x.dtype, UPCAST)
            total += _tile(near, x, scale, zero, ones, ZEROED, UPCAST)
            total += _tile(far, y, other, below, ones, ZEROED, UPCAST)
        else:
            wide = _widen(codes, x.dtype, MIDDLE, UPCAST)
            ones = tl.full(wide.shape, 1.0, wide.dtype)
            total += _tile(wide, x, scale, zero, ones, ZEROED, UPCAST)
        w_at += BLOCK
        x_at += BLOCK
    if BIASED:
        total += tl.load(bias_ptr + row).to(tl.float32)[:, None]
    y_at = y_ptr + (split * m_size + m).to(tl.int64)[None, :] * n_size + n[:, None]
    tl.store(y_at, total.to(y_ptr.dtype.element_ty), mask=(n < n_size)[:, None] & inside_m[None, :])
