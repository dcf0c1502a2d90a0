"""Bias, optional norm, rotary embedding and the writing of keys and values, in one launch.

    x = qkv + bias                                          [rows, heads + 2 * kv_heads, head_dim]
    q, k = x * rsqrt(mean(x^2) + eps) * weight, per head    only with norms (Qwen3)
    q, k = rotated by the angles of the row's position, in pairs (i, i + head_dim / 2)

Queries go to a tensor of their own, keys and values to their rows of the arena. Storage is bf16,
fp16 or fp32; arithmetic is fp32 and rounds once, when it stores. Cosines and sines come from a
table: the sine of a large angle is dear to compute, its row of the table is in L2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arena import FLOATS, check_layout
from kernels.checks import check_choice, check_device, check_eps, check_tensor
from kernels.types.attention import KVLayout

HEAD_DIMS = (16, 32, 64, 128, 256)
_ELEMENTS = 512  # of each half, a program of one warp: 16 a lane, in 16-byte loads


@triton.jit
def _both_halves(at: tl.tensor, mask: tl.tensor, half: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """What lies at ``at`` and ``half`` elements further on, as fp32."""
    first = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(at + half, mask=mask, other=0.0).to(tl.float32)
    return first, second


@triton.jit(
    do_not_specialize=("rope_length", "slots_a_slab", "slab_rows", "block_rows", "layer_rows")
)
def rope_kv_kernel(
    qkv: tl.tensor,
    bias: tl.tensor,
    query_norm: tl.tensor,
    key_norm: tl.tensor,
    rope: tl.tensor,
    positions: tl.tensor,
    slots: tl.tensor,
    query: tl.tensor,
    arena: tl.tensor,
    rope_length: tl.tensor,
    slots_a_slab: tl.tensor,
    slab_rows: tl.tensor,
    block_rows: tl.tensor,
    layer_rows: tl.tensor,
    eps: tl.tensor,
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    page: tl.constexpr,
    block_heads: tl.constexpr,
    biased: tl.constexpr,
    normed: tl.constexpr,
) -> None:
    """Grid: (rows, groups of ``block_heads`` heads), queries' heads before keys' before values'."""
    half: tl.constexpr = head_dim // 2
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * block_heads + tl.arange(0, block_heads)
    column = tl.arange(0, half)
    every = heads + 2 * kv_heads
    inside = (head < every)[:, None] & (column < half)[None, :]
    within = head[:, None] * head_dim + column[None, :]
    first, second = _both_halves(qkv + row * every * head_dim + within, inside, half)
    if biased:
        more, other = _both_halves(bias + within, inside, half)
        first, second = first + more, second + other
    is_query, is_value = head < heads, head >= heads + kv_heads
    if normed:
        mean = (tl.sum(first * first, 1) + tl.sum(second * second, 1)) / head_dim
        scale = tl.where(is_value, 1.0, tl.rsqrt(mean + eps))[:, None]
        every_column = column < half
        of_query, of_query_2 = _both_halves(query_norm + column, every_column, half)
        of_key, of_key_2 = _both_halves(key_norm + column, every_column, half)
        weight = tl.where(is_query[:, None], of_query[None, :], of_key[None, :])
        weight_2 = tl.where(is_query[:, None], of_query_2[None, :], of_key_2[None, :])
        first *= scale * tl.where(is_value[:, None], 1.0, weight)
        second *= scale * tl.where(is_value[:, None], 1.0, weight_2)

    position = tl.load(positions + row).to(tl.int64)
    angle_at = rope + position * head_dim + column
    cosine = tl.load(angle_at)[None, :]
    sine = tl.load(angle_at + rope_length.to(tl.int64) * head_dim)[None, :]
    cosine = tl.where(is_value[:, None], 1.0, cosine)
    sine = tl.where(is_value[:, None], 0.0, sine)
    turned = (first * cosine - second * sine).to(query.dtype.element_ty)
    turned_2 = (second * cosine + first * sine).to(query.dtype.element_ty)

    query_at = query + row * heads * head_dim + within
    tl.store(query_at, turned, mask=inside & is_query[:, None])
    tl.store(query_at + half, turned_2, mask=inside & is_query[:, None])
    slot = tl.load(slots + row)
    block = slot // page
    slab = block // slots_a_slab
    base = slab.to(tl.int64) * slab_rows + (block - slab * slots_a_slab).to(tl.int64) * block_rows
    # Keys' planes come before values' in the arena as their heads do here.
    plane = layer_rows + (head - heads) * page + slot % page
    cache_at = arena + (base + plane)[:, None] * head_dim + column[None, :]
    cached = inside & (head >= heads)[:, None] & (slot >= 0)
    tl.store(cache_at, turned, mask=cached)
    tl.store(cache_at + half, turned_2, mask=cached)


def rope_kv(
    qkv: Tensor,
    bias: Tensor | None,
    rope: Tensor,
    positions: Tensor,
    slots: Tensor,
    arena: Tensor,
    layout: KVLayout,
    layer: int,
    norms: tuple[Tensor, Tensor] | None = None,
    eps: float = 1e-6,
    out: Tensor | None = None,
) -> Tensor:
    """Rotate the queries and store the keys and values of a batch.

    Args:
        qkv: [rows, (heads + 2 * kv_heads) * head_dim], of queries, keys, values.
        bias: [(heads + 2 * kv_heads) * head_dim], of its type, or None.
        rope: fp32 [2, length, head_dim], cosines and sines as ``rope_tables`` lays them out.
        positions: int32 [rows], below ``length``.
        slots: int32 [rows], ``block * block_tokens + offset`` in the arena; no two equal. Below 0:
            a padding row, of which nothing is stored there.
        arena: [arena_rows, head_dim], of qkv's type, written in place.
        layout: of the model.
        layer: whose keys and values these are.
        norms: weights [head_dim] of queries and keys, of qkv's type, or None.
        eps: of the norms.
        out: [rows, heads, head_dim]; default: a new tensor.

    Returns:
        The rotated queries, ``out``.
    """
    heads = _check(qkv, bias, rope, positions, slots, arena, layout, layer, norms, eps)
    rows, head_dim = len(qkv), layout.head_dim
    if out is None:
        out = qkv.new_empty((rows, heads, head_dim))
    check_tensor("out", out, (rows, heads, head_dim), (qkv.dtype,), like=qkv)
    if not rows:
        return out
    block_heads = block_heads_of(head_dim)
    query_norm, key_norm = norms or (qkv, qkv)
    rope_kv_kernel[(rows, triton.cdiv(heads + 2 * layout.kv_heads, block_heads))](
        qkv,
        qkv if bias is None else bias,
        query_norm,
        key_norm,
        rope,
        positions,
        slots,
        out,
        arena,
        rope.shape[1],
        layout.slots,
        layout.slab_rows,
        layout.block_rows,
        2 * layer * layout.plane_rows,
        eps,
        heads=heads,
        kv_heads=layout.kv_heads,
        head_dim=head_dim,
        page=layout.block_tokens,
        block_heads=block_heads,
        biased=bias is not None,
        normed=norms is not None,
        num_warps=1,
    )
    return out


def block_heads_of(head_dim: int) -> int:
    """Heads that one program takes."""
    return _ELEMENTS // (head_dim // 2)


def _check(
    qkv: Tensor,
    bias: Tensor | None,
    rope: Tensor,
    positions: Tensor,
    slots: Tensor,
    arena: Tensor,
    layout: KVLayout,
    layer: int,
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
) -> int:
    """Returns the query heads."""
    head_dim = layout.head_dim
    check_choice("layout.head_dim", head_dim, HEAD_DIMS)
    check_layout(layout, layer)
    check_tensor("qkv", qkv, (None, None), FLOATS)
    check_device("qkv", qkv, rope_kv_kernel)
    rows, columns = qkv.shape
    heads = columns // head_dim - 2 * layout.kv_heads
    if columns % head_dim or heads < 1 or heads % layout.kv_heads:
        raise ValueError(
            f"qkv must have (heads + 2 * {layout.kv_heads}) * {head_dim} columns with heads a "
            f"multiple of layout.kv_heads, got {columns}"
        )
    same = (qkv.dtype,)
    if bias is not None:
        check_tensor("bias", bias, (columns,), same, like=qkv)
    check_tensor("rope", rope, (2, None, head_dim), (torch.float32,), like=qkv)
    check_tensor("positions", positions, (rows,), (torch.int32,), like=qkv)
    check_tensor("slots", slots, (rows,), (torch.int32,), like=qkv)
    check_tensor("arena", arena, (None, head_dim), same, like=qkv)
    for name, weight in zip(("norms[0]", "norms[1]"), norms or (), strict=False):
        check_tensor(name, weight, (head_dim,), same, like=qkv)
    check_eps(eps)
    return heads
