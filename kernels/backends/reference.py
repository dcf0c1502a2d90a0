"""The backend of the oracles: plain PyTorch, on any device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.backends.base import Backend
from kernels.cpu import ForwardPass
from kernels.reference import attention, confidence, layers, logprobs, packed, penalties, sampling
from kernels.types.attention import AttentionPlan, KVLayout
from kernels.types.sampling import DrawRows, PenaltyRows
from kernels.types.statistics import Confidence, LogProbs
from kernels.types.weights import WORKSPACE, Weight


class ReferenceBackend(Backend):
    """Every operation by its reference. The other backends replace what they do faster.

    workspace: bytes that ``head_logits`` takes for weights which it widens.
    """

    workspace = WORKSPACE

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return layers.rms_norm(x, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        return layers.add_rms_norm(x, residual, weight, eps)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        return layers.silu_mul(gate_up)

    def linear(
        self, x: Tensor, weight: Weight, bias: Tensor | None = None, scale: Tensor | None = None
    ) -> Tensor:
        if isinstance(weight, Tensor):
            return layers.linear(x, weight, bias, scale)
        return packed.packed_linear(x, weight, bias)

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
        return attention.rope_kv(qkv, bias, rope, positions, arena, plan, layer, norms, eps)

    def paged_attention(
        self, arena: Tensor, plan: AttentionPlan, layer: int, query: Tensor
    ) -> Tensor:
        return attention.paged_attention(arena, plan, layer, query)

    def attended(self, plan: AttentionPlan, attention_pairs: int) -> int:
        return sum(group.queries.numel() * group.keys.shape[-1] for group in plan.groups)

    def copy_blocks(self, arena: Tensor, layout: KVLayout, copies: Tensor) -> None:
        attention.copy_blocks(arena, layout, copies)

    def lm_head(
        self, hidden: Tensor, weight: Tensor, vocabulary: int, keep: bool, fused: bool = True
    ) -> tuple[Confidence, Tensor | None]:
        logits = self.linear(hidden, weight).float()
        return self.confidence(logits, vocabulary), logits if keep else None

    def head_logits(self, hidden: Tensor, weight: Tensor, vocabulary: int) -> Tensor:
        if hidden.dtype == torch.float32:
            return self.linear(hidden, weight)
        wide, slab = hidden.float(), max(1, self.workspace // 4 // hidden.shape[1])
        return torch.cat([layers.linear(wide, rows.float()) for rows in weight.split(slab)], 1)

    def confidence(self, logits: Tensor, vocabulary: int) -> Confidence:
        return confidence.confidence(logits, vocabulary)

    def score(self, logits: Tensor, vocabulary: int, targets: Tensor) -> Tensor:
        return logprobs.score(logits, vocabulary, targets, self.confidence(logits, vocabulary))

    def token_logprobs(
        self, logits: Tensor, vocabulary: int, tokens: Tensor, count: int
    ) -> LogProbs:
        return logprobs.token_logprobs(logits, vocabulary, tokens, count)

    def editable(self, logits: Tensor, vocabulary: int) -> Tensor:
        return logits[:, :vocabulary].double()

    def penalise(self, logits: Tensor, vocabulary: int, rows: PenaltyRows) -> Tensor:
        return penalties.penalise(logits, vocabulary, rows)

    def sample(self, logits: Tensor, vocabulary: int, rows: DrawRows, fused: bool = True) -> Tensor:
        return sampling.sample(logits, vocabulary, rows)

    def forward_pass(
        self,
        embedding: Tensor,
        norm: Tensor,
        head: Tensor,
        rope: Tensor,
        layers: Sequence[Any],
        heads: int,
        eps: float,
    ) -> ForwardPass | None:
        return None
