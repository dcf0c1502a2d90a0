"""Cases of the kernels on the arena: attention, rotation with KV writes, copies of blocks."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bench.kernel_bench.case import Case, CaseMaker
from kernels import attention, copy_blocks, rope_kv
from kernels.aot.attention import roofline as attention_roofline
from kernels.aot.copy_blocks import roofline as copy_blocks_roofline
from kernels.aot.rope_kv import roofline as rope_kv_roofline
from kernels.aot.variant import ModelShape
from kernels.attention_config import Work
from kernels.reference import layers
from kernels.types.attention import KVLayout

PAGE = 64
EPS = 1e-6


def _layout(shape: ModelShape, layers: int = 1) -> KVLayout:
    """A layout with one block per slab."""
    rows = layers * 2 * shape.kv_heads * PAGE
    return KVLayout(layers, shape.kv_heads, shape.head_dim, PAGE, 1, rows)


def attentions(shape: ModelShape, batch: int, maker: CaseMaker) -> list[Case]:
    """Decodes and short spans, ``batch`` sequences each; prefills of one sequence."""
    found = [_attention(shape, maker, batch, "decode", 1, context) for context in maker.contexts]
    found += [_attention(shape, maker, batch, "short", *sizes) for sizes in maker.short]
    if batch == 1:
        found += [_attention(shape, maker, 1, "prefill", *sizes) for sizes in maker.prefills]
    return found


def _attention(
    shape: ModelShape, maker: CaseMaker, batch: int, name: str, span: int, context: int
) -> Case:
    layout = _layout(shape)
    starts, contexts = range(0, (batch + 1) * span, span), [context] * batch
    work = Work.of(starts, contexts)
    roofline = attention_roofline(layout, shape.heads, starts, contexts)

    def inputs() -> tuple[Tensor, ...]:
        """Queries, the arena and its pages in random order."""
        integers = partial(torch.tensor, dtype=torch.int32, device=maker.device)
        pages = batch * context // PAGE
        return (
            maker.random(batch * span, shape.heads, shape.head_dim),
            maker.random(pages * layout.slab_rows, shape.head_dim),
            maker.shuffled(pages).view(batch, -1),
            integers(starts),
            integers(contexts),
        )

    def kernel(
        query: Tensor, arena: Tensor, table: Tensor, starts: Tensor, contexts: Tensor
    ) -> Tensor:
        return attention.paged_attention(query, arena, layout, 0, table, starts, contexts, work)

    # Keys and values side by side, and queries and results in another order.
    return Case(
        "attention",
        name,
        batch * span,
        roofline,
        inputs,
        kernel,
        partial(_plain_attention, layout),
        context,
        scratch=2 * roofline.bytes,
    )


def _plain_attention(
    layout: KVLayout, query: Tensor, arena: Tensor, table: Tensor, starts: Tensor, contexts: Tensor
) -> Tensor:
    """Gathers pages, then torch's fused attention; all sequences are equally long."""
    rows, heads, width = query.shape
    batch, kv_heads = len(table), layout.kv_heads
    span, context = rows // batch, table.shape[1] * layout.block_tokens
    memory = arena.view(-1, 2, kv_heads, layout.block_tokens, width)
    at = table[:, None], torch.arange(kv_heads, device=arena.device)[:, None]
    keys, values = (memory[:, i][at].view(batch, kv_heads, context, width) for i in (0, 1))
    turned = query.view(batch, span, heads, width).transpose(1, 2)
    if span == context:
        out = scaled_dot_product_attention(turned, keys, values, is_causal=True, enable_gqa=True)
    else:  # queries of a group share one pass over its keys
        group, mask = heads // kv_heads, None
        if span > 1:
            last = torch.arange(context - span, context, device=arena.device)
            seen = torch.arange(context, device=arena.device) <= last[:, None]
            mask = seen.repeat(group, 1)
        packed = turned.reshape(batch, kv_heads, group * span, width)
        out = scaled_dot_product_attention(packed, keys, values, mask)
    return out.reshape(batch, heads, span, width).transpose(1, 2).reshape(rows, heads, width)


def rope_kvs(shape: ModelShape, batch: int, maker: CaseMaker) -> list[Case]:
    """With bias (Qwen2) and with norms (Qwen3)."""
    layout = _layout(shape)
    roofline = rope_kv_roofline(layout, shape.heads, batch)
    return [
        Case(
            "rope_kv",
            name,
            batch,
            roofline,
            partial(_rope_inputs, shape, maker, layout, batch, name),
            partial(_rope_kv, layout),
            partial(_plain_rope_kv, layout),
            scratch=8 * roofline.bytes,
        )
        for name in ("bias", "norms")
    ]


def _rope_inputs(
    shape: ModelShape, maker: CaseMaker, layout: KVLayout, batch: int, name: str
) -> tuple[object, ...]:
    """As many blocks and angles as the batch fills."""
    blocks, width = -(-batch // PAGE), shape.head_dim
    columns = (shape.heads + 2 * shape.kv_heads) * width
    biased = name == "bias"
    return (
        maker.random(batch, columns),
        maker.random(columns) if biased else None,
        layers.rope_tables(batch, width, 1e6, torch.float32).to(maker.device),
        maker.shuffled(batch),
        maker.shuffled(blocks * PAGE)[:batch].contiguous(),
        maker.zeros(blocks * layout.slab_rows, width),
        None if biased else (maker.random(width), maker.random(width)),
    )


def _rope_kv(
    layout: KVLayout,
    qkv: Tensor,
    bias: Tensor | None,
    rope: Tensor,
    positions: Tensor,
    slots: Tensor,
    arena: Tensor,
    norms: tuple[Tensor, Tensor] | None,
) -> Tensor:
    return rope_kv.rope_kv(qkv, bias, rope, positions, slots, arena, layout, 0, norms, EPS)


def _plain_rope_kv(
    layout: KVLayout,
    qkv: Tensor,
    bias: Tensor | None,
    rope: Tensor,
    positions: Tensor,
    slots: Tensor,
    arena: Tensor,
    norms: tuple[Tensor, Tensor] | None,
) -> Tensor:
    page, kv_heads, width = layout.block_tokens, layout.kv_heads, layout.head_dim
    x = (qkv if bias is None else qkv + bias).view(len(qkv), -1, width)
    query, key, value = x.split([x.shape[1] - 2 * kv_heads, kv_heads, kv_heads], 1)
    if norms is not None:
        query = layers.rms_norm(query, norms[0], EPS)
        key = layers.rms_norm(key, norms[1], EPS)
    cosine, sine = rope[:, positions][:, :, None].to(qkv.dtype)
    query, key = layers.apply_rope(query, cosine, sine), layers.apply_rope(key, cosine, sine)
    block = slots.long() // page
    head = torch.arange(kv_heads, device=arena.device) * page
    at = ((block * layout.block_rows + slots % page)[:, None] + head).flatten()
    arena.index_copy_(0, at, key.reshape(-1, width))
    arena.index_copy_(0, at + layout.plane_rows, value.reshape(-1, width))
    return query


def copies(shape: ModelShape, batch: int, maker: CaseMaker) -> list[Case]:
    """``batch`` blocks, each to one that no other pair names."""
    layout = _layout(shape, maker.copied_layers)
    roofline = copy_blocks_roofline(layout, batch)

    def inputs() -> tuple[Tensor, Tensor]:
        arena = maker.random(2 * batch * layout.slab_rows, shape.head_dim)
        return arena, maker.shuffled(2 * batch).view(batch, 2)

    def kernel(arena: Tensor, pairs: Tensor) -> None:
        copy_blocks.copy_blocks(arena, layout, pairs)

    return [
        Case(
            "copy_blocks",
            "copy",
            batch,
            roofline,
            inputs,
            kernel,
            partial(_plain_copy, layout),
            scratch=roofline.bytes,
        )
    ]


def _plain_copy(layout: KVLayout, arena: Tensor, pairs: Tensor) -> None:
    blocks = arena.view(-1, layout.block_rows * layout.head_dim)
    source, target = pairs.long().unbind(1)
    blocks.index_copy_(0, target, blocks[source])
