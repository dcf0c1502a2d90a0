"""The backend of a CPU: the compiled kernels where they suit, else the references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels import cpu
from kernels.backends.reference import ReferenceBackend
from kernels.types.statistics import Confidence


class CpuBackend(ReferenceBackend):
    """Whole passes and statistics by the compiled kernels."""

    def confidence(self, logits: Tensor, vocabulary: int) -> Confidence:
        if logits.dtype == torch.float64:
            return super().confidence(logits, vocabulary)
        return cpu.confidence(logits.float(), vocabulary)

    def forward_pass(
        self,
        embedding: Tensor,
        norm: Tensor,
        head: Tensor,
        rope: Tensor,
        layers: Sequence[Any],
        heads: int,
        eps: float,
    ) -> cpu.ForwardPass | None:
        if not cpu.takes(embedding, rope, layers):
            return None
        return cpu.ForwardPass(embedding, norm, head, rope, layers, heads, eps)
