"""The operations that the models need of a device, as one interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from kernels.cpu import ForwardPass
from kernels.types.attention import AttentionPlan, KVLayout
from kernels.types.sampling import DrawRows, PenaltyRows
from kernels.types.statistics import Confidence, LogProbs
from kernels.types.weights import Weight


class Backend(ABC):
    """What computes on one device. It keeps no tensors: engines may share one.

    The functions of ``kernels.reference`` say what each operation means, in plain PyTorch.
    """

    @abstractmethod
    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """``x / rms(x) * weight`` over the last dimension; see the reference."""

    @abstractmethod
    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Add ``residual`` to ``x`` in place and return the norm of the sum."""

    @abstractmethod
    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """``silu(gate) * up`` where gate and up are the halves of the last dimension."""

    @abstractmethod
    def linear(
        self, x: Tensor, weight: Weight, bias: Tensor | None = None, scale: Tensor | None = None
    ) -> Tensor:
        """``x @ weight^T * scale + bias``; see the references.

        Args:
            x: [rows, in].
            weight: [out, in].
            bias: [out].
            scale: fp32 [out], for plain weights only.
        """

    @abstractmethod
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
        """Bias, norms, rotation and the writing of keys and values; see the reference."""

    @abstractmethod
    def paged_attention(
        self, arena: Tensor, plan: AttentionPlan, layer: int, query: Tensor
    ) -> Tensor:
        """Causal attention of each row over its own sequence's keys; see the reference."""

    @abstractmethod
    def attended(self, plan: AttentionPlan, attention_pairs: int) -> int:
        """Pairs of query and key that attention really works on, padding included.

        ``attention_pairs``: queries times keys of all sequences.
        """

    @abstractmethod
    def copy_blocks(self, arena: Tensor, layout: KVLayout, copies: Tensor) -> None:
        """Copy whole blocks, ``copies`` int32 [pairs, (from, to)]; see the reference."""

    @abstractmethod
    def lm_head(
        self, hidden: Tensor, weight: Tensor, vocabulary: int, keep: bool, fused: bool = True
    ) -> tuple[Confidence, Tensor | None]:
        """The statistics of each row, and if ``keep`` its logits, fp32 [rows, head_rows].

        Args:
            hidden: [rows, hidden], after the last norm.
            weight: [head_rows, hidden].
            vocabulary: ids from here on are padding of the head and take no part.
            keep: whether the logits are wanted; without, a GPU never stores them.
            fused: False makes the product first and reads it again, as most engines do.
        """

    @abstractmethod
    def head_logits(self, hidden: Tensor, weight: Tensor, vocabulary: int) -> Tensor:
        """Logits alone, fp32 [rows, head_rows]; arguments as of ``lm_head``.

        They are sums in fp32 also where weights have two bytes: rounded to bf16 a logit of 20 would
        be off by up to 0.06.
        """

    @abstractmethod
    def confidence(self, logits: Tensor, vocabulary: int) -> Confidence:
        """Statistics of each row; see the reference."""

    @abstractmethod
    def score(self, logits: Tensor, vocabulary: int, targets: Tensor) -> Tensor:
        """Log-probabilities of given ids, fp64 of the shape of ``targets``; see the reference."""

    @abstractmethod
    def token_logprobs(
        self, logits: Tensor, vocabulary: int, tokens: Tensor, count: int
    ) -> LogProbs:
        """Log-probabilities of drawn tokens and of the likeliest ``count``; see the reference."""

    @abstractmethod
    def editable(self, logits: Tensor, vocabulary: int) -> Tensor:
        """A copy to change and to draw from, of ``vocabulary`` columns or more.

        fp64; where ``sample`` takes no more fp32, and whole rows: cut off they could be unaligned.
        """

    @abstractmethod
    def penalise(self, logits: Tensor, vocabulary: int, rows: PenaltyRows) -> Tensor:
        """The logits to sample from, fp64 [rows, vocabulary]; see the reference."""

    @abstractmethod
    def sample(self, logits: Tensor, vocabulary: int, rows: DrawRows, fused: bool = True) -> Tensor:
        """One token id a row, int64 [rows]; see the reference. A key draws the same everywhere.

        Args:
            logits: [rows, at least vocabulary].
            vocabulary: ids from here on take no part.
            rows: how to draw, on the device of the logits.
            fused: False draws in plain PyTorch.
        """

    @abstractmethod
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
        """A model's whole pass as one call; None where it goes op by op. See ``ForwardPass``."""
