"""The one face of the kernels for callers: nothing above this module knows which version runs."""

from kernels.reference.attention import (
    AttentionPlan,
    KVLayout,
    copy_blocks,
    paged_attention,
    write_kv,
)
from kernels.reference.confidence import Confidence, confidence
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
