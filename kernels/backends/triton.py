"""The backend of a GPU: the Triton kernels, and plain PyTorch for what has none.

It imports Triton: ``kernels.ops.backend_for`` imports it for the first GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import (
    attention,
    confidence,
    copy_blocks,
    lm_head,
    norm,
    packed_gemm,
    rope_kv,
    silu_mul,
    skinny_gemm,
)
from kernels.backends.reference import ReferenceBackend
from kernels.types.attention import AttentionPlan, KVLayout
from kernels.types.sampling import DrawRows
from kernels.types.statistics import Confidence
from kernels.types.weights import Fp8Weight, PackedWeight, StackedWeight, Weight

_WIDE_HEAD_ROWS = 64  # of a head in fp32: tiles of more do not fit a card


class TritonBackend(ReferenceBackend):
    """Kernels on one GPU; on a CPU through Triton's interpreter, slow, to test what a GPU runs."""

    def __init__(self, device: torch.device) -> None:
        """For the interpreter TRITON_INTERPRET must be set before this module is imported."""
        # Whether matrix products of our own are made for the device.
        self._tuned = device.type != "cuda" or skinny_gemm.hopper(device)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return norm.rms_norm(x, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        return norm.add_rms_norm(x, residual, weight, eps)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        return silu_mul.silu_mul(gate_up)

    def linear(
        self, x: Tensor, weight: Weight, bias: Tensor | None = None, scale: Tensor | None = None
    ) -> Tensor:
        """Up to 16 rows go to kernels of our own, more to the vendor's library.

        Weights that are packed are dequantised within the kernel, or for the library slab by slab.
        """
        if not self._tuned or len(x) > skinny_gemm.ROWS:
            return super().linear(x, weight, bias, scale)
        if isinstance(weight, Tensor):
            return skinny_gemm.skinny_linear(x, weight, bias, scale)
        return self._packed_linear(x, weight, bias)

    def _packed_linear(self, x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
        if isinstance(weight, StackedWeight):
            return weight.product(self._packed_linear, x, bias)
        if isinstance(weight, Fp8Weight) and weight.by_channel:
            return skinny_gemm.skinny_linear(x, weight.codes, bias, weight.scale.view(-1))
        if packed_gemm.takes(weight):
            return packed_gemm.packed_product(x, weight, bias)
        return super().linear(x, weight, bias)

    def rope_kv(
        self,
        qkv: Tensor,
        bias: Tensor | None,
        rope: Tensor,
        positions: Tensor,
        arena: Tensor,
        plan: AttentionPlan,
        layer: int,
        norms: tuple[Tensor, Tensor] | None = None,
        eps: float = 1e-6,
    ) -> Tensor:
        return rope_kv.rope_kv(
            qkv, bias, rope, positions, plan.slots, arena, plan.layout, layer, norms, eps
        )

    def paged_attention(
        self, arena: Tensor, plan: AttentionPlan, layer: int, query: Tensor
    ) -> Tensor:
        return attention.paged_attention(
            query,
            arena,
            plan.layout,
            layer,
            plan.table,
            plan.starts,
            plan.contexts,
            plan.work,
            plan.splits,
        )

    def attended(self, plan: AttentionPlan, attention_pairs: int) -> int:
        return attention_pairs  # the kernels come close to it

    def copy_blocks(self, arena: Tensor, layout: KVLayout, copies: Tensor) -> None:
        copy_blocks.copy_blocks(arena, layout, copies)

    def lm_head(
        self, hidden: Tensor, weight: Tensor, vocabulary: int, keep: bool, fused: bool = True
    ) -> tuple[Confidence, Tensor | None]:
        fits = hidden.element_size() == 2 or len(hidden) <= _WIDE_HEAD_ROWS
        if not (fused and self._tuned and fits):
            return super().lm_head(hidden, weight, vocabulary, keep, fused)
        scored, logits = lm_head.lm_head(
            hidden, weight, vocabulary, None, torch.float32 if keep else None
        )
        return Confidence(*scored[: len(Confidence._fields)]), logits

    def head_logits(self, hidden: Tensor, weight: Tensor, vocabulary: int) -> Tensor:
        _, logits = self.lm_head(hidden, weight, vocabulary, keep=True)
        assert logits is not None
        return logits

    def confidence(self, logits: Tensor, vocabulary: int) -> Confidence:
        scored = confidence.confidence(logits, vocabulary)
        return Confidence(*scored[: len(Confidence._fields)])

    def score(self, logits: Tensor, vocabulary: int, targets: Tensor) -> Tensor:
        return confidence.score(logits, vocabulary, targets).double()

    def editable(self, logits: Tensor, vocabulary: int) -> Tensor:
        return logits.to(torch.float32, copy=True)

    def sample(self, logits: Tensor, vocabulary: int, rows: DrawRows, fused: bool = True) -> Tensor:
        if not fused:
            return super().sample(logits, vocabulary, rows, fused)
        return confidence.confidence(logits, vocabulary, rows).token
