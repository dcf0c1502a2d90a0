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
from kernels.floor import Floor
from kernels.skinny_config import Plan, plan
from kernels.variant import ModelShape, Variant

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
FP8 = torch.float8_e4m3fn
ROWS = 16  # the padded M
MERGE_BLOCK = 1024


@triton.jit(do_not_specialize=("m_size",))
def _skinny_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    w_ptr,
    scale_ptr,
    bias_ptr,
    y_ptr,
    m_size,
    n_size,
    k_size,
    x_stride,
    blocks_per_split,
    SPLIT: tl.constexpr,
    SCALED: tl.constexpr,
    BIASED: tl.constexpr,
    EVEN_K: tl.constexpr,
    UPCAST: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # Grid: (tiles of N, splits of K). With SPLIT, y is the fp32 partial sums.
    tile, split = tl.program_id(0), tl.program_id(1)
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, ROWS)
    k = tl.arange(0, BLOCK_K)
    inside_m = m < m_size
    first = split * blocks_per_split
    last = tl.minimum(first + blocks_per_split, tl.cdiv(k_size, BLOCK_K))
    # Rows past the end read the last one again: no mask in the loop, and nothing of it is stored.
    row = tl.minimum(n, n_size - 1).to(tl.int64)
    w_at = w_ptr + row[:, None] * k_size + (k + first * BLOCK_K)[None, :]
    x_at = x_ptr + m.to(tl.int64)[None, :] * x_stride + (k + first * BLOCK_K)[:, None]
    total = tl.zeros((BLOCK_N, ROWS), tl.float32)
    for block in range(first, last):
        if EVEN_K:
            w = tl.load(w_at, eviction_policy="evict_first")
            x = tl.load(x_at, mask=inside_m[None, :], other=0.0)
        else:
            left = k_size - block * BLOCK_K
            w = tl.load(w_at, mask=(k < left)[None, :], other=0.0)
            x = tl.load(x_at, mask=inside_m[None, :] & (k < left)[:, None], other=0.0)
        if UPCAST:  # the interpreter cannot multiply matrices of bf16
            total = tl.dot(w.to(tl.float32), x.to(tl.float32), total, input_precision="ieee")
        else:
            total = tl.dot(w.to(x.dtype), x, total, input_precision="ieee")
        w_at += BLOCK_K
        x_at += BLOCK_K
    inside = (n < n_size)[:, None] & inside_m[None, :]
    y_at = y_ptr + (split * m_size + m).to(tl.int64)[None, :] * n_size + n[:, None]
    if not SPLIT:
        if SCALED:
            total *= tl.load(scale_ptr + n, mask=n < n_size, other=0.0)[:, None]
        if BIASED:
            total += tl.load(bias_ptr + n, mask=n < n_size, other=0.0).to(tl.float32)[:, None]
    tl.store(y_at, total.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _merge_kernel(  # type: ignore[no-untyped-def]
    part_ptr,
    scale_ptr,
    bias_ptr,
    y_ptr,
    n_size,
    SPLITS: tl.constexpr,
    SCALED: tl.constexpr,
    BIASED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Grid: (tiles of N, M). Adds the splits in order, then scale, bias and rounding.
    m = tl.program_id(1).to(tl.int64)
    size = tl.num_programs(1).to(tl.int64) * n_size
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = n < n_size
    at = part_ptr + m * n_size + n
    total = tl.load(at, mask=inside, other=0.0)
    for split in tl.static_range(1, SPLITS):
        total += tl.load(at + split * size, mask=inside, other=0.0)
    if SCALED:
        total *= tl.load(scale_ptr + n, mask=inside, other=0.0)
    if BIASED:
        total += tl.load(bias_ptr + n, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + m * n_size + n, total.to(y_ptr.dtype.element_ty), mask=inside)


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
    _skinny_kernel[(triton.cdiv(n, config.block_n), chosen.splits)](
        x, weight, scale_at, bias_at, out, m, n, k, x.stride(0), chosen.blocks_per_split,
        SPLIT=split, SCALED=scale is not None and not split, BIASED=bias is not None and not split,
        EVEN_K=k % config.block_k == 0, UPCAST=bool(knobs.runtime.interpret), ROWS=ROWS,
        BLOCK_N=config.block_n, BLOCK_K=config.block_k,
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    if split:
        merge(out, y, scale, bias)
    return y


def merge(parts: Tensor, y: Tensor, scale: Tensor | None, bias: Tensor | None) -> None:
    """Adds partial sums [SPLITS, M, N] in order, then scale, bias and rounding, into y [M, N]."""
    (m, n), (scale_at, bias_at) = y.shape, (w if w is not None else y for w in (scale, bias))
    _merge_kernel[(triton.cdiv(n, MERGE_BLOCK), m)](
        parts, scale_at, bias_at, y, n, SPLITS=len(parts), SCALED=scale is not None,
        BIASED=bias is not None, BLOCK=MERGE_BLOCK, num_warps=4,
    )  # fmt: skip


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> None:
    check_tensor("x", x, (None, None), FLOATS, contiguous=False)
    check_device("x", x, _skinny_kernel)
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


def floor(rows: int, n: int, k: int, weight_bytes: int = 2, element_bytes: int = 2) -> Floor:
    """Reads the weights (and fp8's scales) once and x, writes y. Partial sums are no part of it."""
    scales = 4 * n if weight_bytes == 1 else 0
    return Floor(weight_bytes * n * k + scales + element_bytes * rows * (n + k), 2 * rows * n * k)


def shapes(shape: ModelShape) -> dict[str, tuple[int, int]]:
    """[N, K] of a model's linear layers."""
    query = shape.heads * shape.head_dim
    return {
        "qkv": (query + 2 * shape.kv_heads * shape.head_dim, shape.hidden),
        "output": (shape.hidden, query),
        "gate_up": (2 * shape.feed_forward, shape.hidden),
        "down": (shape.hidden, shape.feed_forward),
        "head": (shape.head_rows, shape.hidden),
    }


def variants(shape: ModelShape) -> list[Variant]:
    """Each linear layer with bf16 and with fp8 weights, and the merge where K is split."""
    found = []
    for layer, (n, k) in shapes(shape).items():
        for kind, size in (("bf16", 2), ("fp8", 1)):
            chosen = plan(n, k, size)
            found.append(_product_variant(f"{layer}_{kind}", chosen, k, size, layer == "qkv"))
            if chosen.splits > 1:
                name = f"{layer}_{kind}_merge"
                merged = merge_variant(
                    "skinny_gemm", name, chosen.splits, size == 1, layer == "qkv"
                )
                found.append(merged)
    return found


def _product_variant(name: str, chosen: Plan, k: int, size: int, biased: bool) -> Variant:
    config, split = chosen.config, chosen.splits > 1
    return Variant(
        op="skinny_gemm",
        name=name,
        kernel=_skinny_kernel,
        signature={
            "x_ptr": "*bf16", "w_ptr": "*fp8e4nv" if size == 1 else "*bf16", "scale_ptr": "*fp32",
            "bias_ptr": "*bf16", "y_ptr": "*fp32" if split else "*bf16",
            **dict.fromkeys(("m_size", "n_size", "k_size", "x_stride", "blocks_per_split"), "i32"),
        },
        constants={
            "SPLIT": split, "SCALED": size == 1 and not split, "BIASED": biased and not split,
            "EVEN_K": k % config.block_k == 0, "UPCAST": False, "ROWS": ROWS,
            "BLOCK_N": config.block_n, "BLOCK_K": config.block_k,
        },
        aligned=(
            "x_ptr", "w_ptr", "scale_ptr", "bias_ptr", "y_ptr", "n_size", "k_size", "x_stride",
        ),
        warps=config.warps,
        stages=config.stages,
        elements=config.block_n * config.block_k,
        budget=config.budget,
        registers=128,
    )  # fmt: skip


def merge_variant(op: str, name: str, splits: int, scaled: bool, biased: bool) -> Variant:
    """The merge of an op's partial sums."""
    return Variant(
        op=op,
        name=name,
        kernel=_merge_kernel,
        signature={
            "part_ptr": "*fp32", "scale_ptr": "*fp32", "bias_ptr": "*bf16", "y_ptr": "*bf16",
            "n_size": "i32",
        },
        constants={"SPLITS": splits, "SCALED": scaled, "BIASED": biased, "BLOCK": MERGE_BLOCK},
        aligned=("part_ptr", "scale_ptr", "bias_ptr", "y_ptr", "n_size"),
        elements=MERGE_BLOCK,
        budget=20 + 4 * splits,
        registers=128,
    )  # fmt: skip
