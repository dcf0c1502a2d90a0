"""The operations that have Triton kernels. Their gates are a module each.

Imported by name when asked for: to list the ops takes no Triton.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from kernels.aot.variant import ModelShape, Variant

OPS = (
    "confidence",
    "lm_head",
    "attention",
    "rope_kv",
    "copy_blocks",
    "norm",
    "silu_mul",
    "skinny_gemm",
    "packed_gemm",
)


def load(op: str) -> ModuleType:
    """The module of an op's gates, with ``roofline`` and ``variants``."""
    if op not in OPS:
        raise ValueError(f"unknown op {op!r}; known: {', '.join(OPS)}")
    return import_module(f"kernels.aot.{op}")


def op_variants(op: str, shape: ModelShape) -> list[Variant]:
    """Every kernel of one op as a model of this shape would launch it."""
    variants: list[Variant] = load(op).variants(shape)
    return variants


def all_variants(shape: ModelShape) -> list[Variant]:
    """Every kernel of every op."""
    return [variant for op in OPS for variant in op_variants(op, shape)]
