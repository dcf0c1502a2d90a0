"""Gates of ``kernels.rope_kv``."""

from __future__ import annotations

from kernels.aot.roofline import Roofline
from kernels.aot.variant import ModelShape, Variant
from kernels.rope_kv import block_heads_of, rope_kv_kernel
from kernels.types.attention import KVLayout


def roofline(layout: KVLayout, heads: int, rows: int, itemsize: int = 2) -> Roofline:
    """Everything is read once and written once; angles are half a table row each."""
    columns = (heads + 2 * layout.kv_heads) * layout.head_dim
    angles = rows * layout.head_dim * 4
    return Roofline(2 * rows * columns * itemsize + columns * itemsize + angles, 7 * rows * columns)


def variants(shape: ModelShape) -> list[Variant]:
    """bf16, pages of 64 tokens: with bias (Qwen2) and with norms (Qwen3)."""
    halves = ("qkv", "bias", "query_norm", "key_norm", "query", "arena")
    sizes = ("rope_length", "slots_a_slab", "slab_rows", "block_rows", "layer_rows")
    signature = dict.fromkeys(halves, "*bf16") | dict.fromkeys(("positions", "slots"), "*i32")
    signature |= dict.fromkeys(sizes, "i32") | {"rope": "*fp32", "eps": "fp32"}
    block_heads = block_heads_of(shape.head_dim)
    return [
        Variant(
            op="rope_kv",
            name=f"{name}",
            kernel=rope_kv_kernel,
            signature=signature,
            constants={
                "heads": shape.heads,
                "kv_heads": shape.kv_heads,
                "head_dim": shape.head_dim,
                "page": 64,
                "block_heads": block_heads,
                "biased": biased,
                "normed": not biased,
            },
            aligned=(*halves, "rope", "positions", "slots"),
            warps=1,
            elements=block_heads * shape.head_dim,
            budget=22,
        )
        for name, biased in (("bias", True), ("norms", False))
    ]
