"""The one face of the kernels for callers: nothing above this module knows which version runs."""

from __future__ import annotations

from torch import Tensor

from kernels.reference import confidence as _confidence
from kernels.reference.attention import (
    AttentionPlan,
    KVLayout,
    copy_blocks,
    paged_attention,
    write_kv,
)
from kernels.reference.confidence import Confidence
from kernels.reference.layers import apply_rope, rms_norm, rope_tables, silu_mul
from kernels.reference.logprobs import LogProbs, token_logprobs
from kernels.reference.penalties import PenaltyRows, penalise
from kernels.reference.sampling import SamplingRows, philox_uniform, sample

__all__ = [
    "AttentionPlan",
    "Confidence",
    "KVLayout",
    "LogProbs",
    "PenaltyRows",
    "SamplingRows",
    "apply_rope",
    "confidence",
    "copy_blocks",
    "paged_attention",
    "penalise",
    "philox_uniform",
    "rms_norm",
    "rope_tables",
    "sample",
    "silu_mul",
    "token_logprobs",
    "write_kv",
]


def confidence(logits: Tensor, vocabulary: int) -> Confidence:
    """Statistics of each row: see ``kernels.reference.confidence.confidence``."""
    if not logits.is_cuda:
        return _confidence.confidence(logits, vocabulary)
    from kernels.confidence import confidence as fused  # Triton, not to be imported elsewhere

    return Confidence(*fused(logits, vocabulary)[: len(Confidence._fields)])
