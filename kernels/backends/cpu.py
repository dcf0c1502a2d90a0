"""The backend of a CPU: the compiled kernels where they suit, else the references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels import cpu
from kernels.backends.reference import ReferenceBackend
from kernels.types.sampling import DrawRows
from kernels.types.statistics import Confidence


class CpuBackend(ReferenceBackend):
    """Whole passes, statistics and draws by the compiled kernels."""

    def confidence(self, logits: Tensor, vocabulary: int) -> Confidence:
        if logits.dtype == torch.float64:
            return super().confidence(logits, vocabulary)
        return cpu.confidence(logits.float(), vocabulary)

    def sample(self, logits: Tensor, vocabulary: int, rows: DrawRows, fused: bool = True) -> Tensor:
        if not fused:
            return super().sample(logits, vocabulary, rows, fused)
        wide = logits.dtype == torch.float64
        return cpu.draw(logits if wide else logits.float(), vocabulary, rows)

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
