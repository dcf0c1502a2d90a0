"""Gates of ``kernels.skinny_gemm``."""

from __future__ import annotations

from kernels.aot.roofline import Roofline
from kernels.aot.variant import ModelShape, Variant
from kernels.skinny_config import BYTES, EXACT, NARROW, NARROW_BYTES, WIDE, Plan, plan
from kernels.skinny_gemm import MERGE_BLOCK, ROWS, merge_kernel, skinny_kernel

# SASS instructions an element.
_BUDGETS = {WIDE: 9.0, NARROW: 14.0, BYTES: 10.5, NARROW_BYTES: 10.5, EXACT: 45.0}


def roofline(rows: int, n: int, k: int, weight_bytes: int = 2, element_bytes: int = 2) -> Roofline:
    """Reads the weights (and fp8's scales) once and x, writes y. Partial sums are no part of it."""
    scales = 4 * n if weight_bytes == 1 else 0
    return Roofline(
        weight_bytes * n * k + scales + element_bytes * rows * (n + k), 2 * rows * n * k
    )


def linear_shapes(shape: ModelShape) -> dict[str, tuple[int, int]]:
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
    gates = []
    for layer, (n, k) in linear_shapes(shape).items():
        for kind, size in (("bf16", 2), ("fp8", 1)):
            chosen = plan(n, k, size)
            gates.append(_product_variant(f"{layer}_{kind}", chosen, k, size, layer == "qkv"))
            if chosen.splits > 1:
                name = f"{layer}_{kind}_merge"
                merged = merge_variant(
                    "skinny_gemm", name, chosen.splits, size == 1, layer == "qkv"
                )
                gates.append(merged)
    return gates


def _product_variant(name: str, chosen: Plan, k: int, size: int, biased: bool) -> Variant:
    config, split = chosen.config, chosen.splits > 1
    return Variant(
        op="skinny_gemm",
        name=name,
        kernel=skinny_kernel,
        signature={
            "x": "*bf16",
            "weight": "*fp8e4nv" if size == 1 else "*bf16",
            "scale": "*fp32",
            "bias": "*bf16",
            "y": "*fp32" if split else "*bf16",
            **dict.fromkeys(("m_size", "n_size", "k_size", "x_stride", "blocks_per_split"), "i32"),
        },
        constants={
            "partial": split,
            "scaled": size == 1 and not split,
            "biased": biased and not split,
            "even_k": k % config.block_k == 0,
            "upcast": False,
            "rows": ROWS,
            "block_n": config.block_n,
            "block_k": config.block_k,
        },
        aligned=("x", "weight", "scale", "bias", "y", "n_size", "k_size", "x_stride"),
        warps=config.warps,
        stages=config.stages,
        elements=config.block_n * config.block_k,
        budget=_BUDGETS[config],
        registers=128,
    )


def merge_variant(op: str, name: str, splits: int, scaled: bool, biased: bool) -> Variant:
    """The merge of an op's partial sums."""
    return Variant(
        op=op,
        name=name,
        kernel=merge_kernel,
        signature={
            "parts": "*fp32",
            "scale": "*fp32",
            "bias": "*bf16",
            "y": "*bf16",
            "n_size": "i32",
        },
        constants={"splits": splits, "scaled": scaled, "biased": biased, "block": MERGE_BLOCK},
        aligned=("parts", "scale", "bias", "y", "n_size"),
        elements=MERGE_BLOCK,
        budget=20 + 4 * splits,
        registers=128,
    )
