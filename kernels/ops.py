"""The one face of the kernels for callers: nothing above this module knows which version runs.

Tensors on a CUDA device go to the Triton kernels, all others to the references. Triton is imported
with the first CUDA tensor, so whoever has no GPU needs none of it.
"""

from __future__ import annotations

from torch import Tensor

from kernels.reference import confidence as _confidence
from kernels.reference import layers
from kernels.reference.attention import (
    AttentionPlan,
    KVLayout,
    copy_blocks,
    paged_attention,
    write_kv,
)
from kernels.reference.confidence import Confidence
from kernels.reference.layers import apply_rope, rope_tables
from kernels.reference.logprobs import LogProbs, token_logprobs
from kernels.reference.packed import (
    Fp8Weight,
    IntWeight,
    PackedWeight,
    StackedWeight,
    Weight,
    packed_linear,
    weight_tensors,
)
from kernels.reference.penalties import PenaltyRows, penalise
from kernels.reference.sampling import SamplingRows, philox_uniform, sample

__all__ = [
    "AttentionPlan",
    "Confidence",
    "Fp8Weight",
    "IntWeight",
    "KVLayout",
    "LogProbs",
    "PackedWeight",
    "PenaltyRows",
    "SamplingRows",
    "StackedWeight",
    "Weight",
    "add_rms_norm",
    "apply_rope",
    "confidence",
    "copy_blocks",
    "linear",
    "paged_attention",
    "penalise",
    "philox_uniform",
    "rms_norm",
    "rope_tables",
    "sample",
    "silu_mul",
    "token_logprobs",
    "weight_tensors",
    "write_kv",
]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / rms(x) * weight`` over the last dimension; see the reference."""
    if x.is_cuda:
        from kernels import norm

        return norm.rms_norm(x, weight, eps)
    return layers.rms_norm(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Add ``residual`` to ``x`` in place and return the norm of the sum."""
    if x.is_cuda:
        from kernels import norm

        return norm.add_rms_norm(x, residual, weight, eps)
    return layers.add_rms_norm(x, residual, weight, eps)


def silu_mul(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up`` where gate and up are the halves of the last dimension."""
    if gate_up.is_cuda:
        from kernels import silu_mul as kernel

        return kernel.silu_mul(gate_up)
    return layers.silu_mul(gate_up)


def linear(
    x: Tensor, weight: Weight, bias: Tensor | None = None, scale: Tensor | None = None
) -> Tensor:
    """``x @ weight^T * scale + bias``; see the references. ``scale`` is for plain weights only."""
    if not isinstance(weight, Tensor):
        return packed_linear(x, weight, bias)
    if x.is_cuda:
        from kernels import skinny_gemm

        return skinny_gemm.linear(x, weight, bias, scale)
    return layers.linear(x, weight, bias, scale)


def confidence(logits: Tensor, vocabulary: int) -> Confidence:
    """Statistics of each row: see ``kernels.reference.confidence.confidence``."""
    if not logits.is_cuda:
        return _confidence.confidence(logits, vocabulary)
    from kernels.confidence import confidence as fused  # Triton, not to be imported elsewhere

    return Confidence(*fused(logits, vocabulary)[: len(Confidence._fields)])
