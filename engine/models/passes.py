"""A model's pass from token ids to logits: op by op, or as one call where a backend has one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.config import ModelConfig
from kernels import ops


@dataclass(frozen=True)
class Layer:
    """Weights of one layer; query, key and value fused, gate and up fused. [out, in].

    What a family lacks is None: biases [out], and the norms of each query and key head,
    ``query_norm`` and ``key_norm`` [head_dim], both or neither.
    """

    attention_norm: Tensor
    qkv: ops.Weight
    qkv_bias: Tensor | None
    output: ops.Weight
    mlp_norm: Tensor
    gate_up: ops.Weight
    down: ops.Weight
    query_norm: Tensor | None = None
    key_norm: Tensor | None = None
    output_bias: Tensor | None = None
    gate_up_bias: Tensor | None = None
    down_bias: Tensor | None = None


@dataclass(frozen=True)
class DecoderWeights:
    """Of one model. ``embedding`` and ``head`` [vocab_size, hidden_size] may be one tensor.

    norm: [hidden_size], before the head.
    rope: fp32 [2, length, head_dim], see ``rope_table``.
    """

    embedding: Tensor
    norm: Tensor
    head: Tensor
    rope: Tensor
    layers: list[Layer]


@dataclass(frozen=True)
class Batch:
    """One tick of one model.

    tokens, positions: [rows], int32 (int64 will do for the references).
    sampled: likewise, the rows whose logits are wanted.
    attention: where keys go and what each row reads.
    """

    tokens: Tensor
    positions: Tensor
    sampled: Tensor
    attention: ops.AttentionPlan


class Pass(Protocol):
    """Each method but ``attended`` writes the batch's keys and values into ``arena``."""

    def logits(self, batch: Batch, arena: Tensor) -> Tensor:
        """fp32 [sampled, vocab_size], padding ids of the head included."""

    def signals(
        self, batch: Batch, arena: Tensor, vocabulary: int, keep: bool, fused: bool
    ) -> tuple[ops.Confidence, Tensor | None]:
        """Statistics of the sampled rows, and their logits if ``keep``; see ``Backend.lm_head``."""

    def split(
        self, batch: Batch, arena: Tensor, vocabulary: int, headless: int
    ) -> tuple[ops.Confidence, Tensor, Tensor]:
        """As ``signals`` with logits; the last ``headless`` sampled rows stop before the head.

        Of those it gives what ``head_logits`` takes, [headless, hidden_size].
        """

    def head_logits(self, hidden: Tensor, vocabulary: int) -> Tensor:
        """fp32 [rows, vocab_size] of rows that stopped before the head; see ``Backend``."""

    def attended(self, batch: Batch, attention_pairs: int) -> int:
        """Pairs of query and key that it works on; ``attention_pairs``: queries times keys."""


class OpByOp:
    """Each operation of each layer by the backend."""

    def __init__(self, config: ModelConfig, weights: DecoderWeights, backend: ops.Backend) -> None:
        self._config, self._weights, self._backend = config, weights, backend

    def logits(self, batch: Batch, arena: Tensor) -> Tensor:
        return self._backend.linear(self._hidden(batch, arena), self._weights.head).float()

    def signals(
        self, batch: Batch, arena: Tensor, vocabulary: int, keep: bool, fused: bool
    ) -> tuple[ops.Confidence, Tensor | None]:
        hidden, head = self._hidden(batch, arena), self._weights.head
        return self._backend.lm_head(hidden, head, vocabulary, keep, fused)

    def split(
        self, batch: Batch, arena: Tensor, vocabulary: int, headless: int
    ) -> tuple[ops.Confidence, Tensor, Tensor]:
        hidden, drawing = self._hidden(batch, arena), len(batch.sampled) - headless
        confidence, logits = self._backend.lm_head(
            hidden[:drawing], self._weights.head, vocabulary, True
        )
        assert logits is not None
        return confidence, logits, hidden[drawing:]

    def head_logits(self, hidden: Tensor, vocabulary: int) -> Tensor:
        return self._backend.head_logits(hidden, self._weights.head, vocabulary)

    def attended(self, batch: Batch, attention_pairs: int) -> int:
        return self._backend.attended(batch.attention, attention_pairs)

    def _hidden(self, batch: Batch, arena: Tensor) -> Tensor:
        """What the head is to be multiplied with, [sampled, hidden_size]."""
        backend, weights, eps = self._backend, self._weights, self._config.norm_eps
        layers = weights.layers
        x = torch.nn.functional.embedding(batch.tokens, weights.embedding)
        h = backend.rms_norm(x, layers[0].attention_norm, eps)
        following = [*(layer.attention_norm for layer in layers[1:]), weights.norm]
        for index, (layer, norm) in enumerate(zip(layers, following, strict=True)):
            mixed = self._attention(index, layer, h, batch, arena)
            h = backend.add_rms_norm(x, mixed, layer.mlp_norm, eps)
            gated = backend.silu_mul(backend.linear(h, layer.gate_up, layer.gate_up_bias))
            written = backend.linear(gated, layer.down, layer.down_bias)
            if norm is weights.norm:  # after it the other rows are not needed
                x, written = (part.index_select(0, batch.sampled) for part in (x, written))
            h = backend.add_rms_norm(x, written, norm, eps)
        return h

    def _attention(
        self, index: int, layer: Layer, h: Tensor, batch: Batch, arena: Tensor
    ) -> Tensor:
        backend, norms = self._backend, None
        if layer.query_norm is not None and layer.key_norm is not None:
            norms = layer.query_norm, layer.key_norm
        query = backend.rope_kv(
            backend.linear(h, layer.qkv),
            layer.qkv_bias,
            self._weights.rope,
            batch.positions,
            arena,
            batch.attention,
            index,
            norms,
            self._config.norm_eps,
        )
        mixed = backend.paged_attention(arena, batch.attention, index, query)
        return backend.linear(mixed.flatten(1), layer.output, layer.output_bias)


class WholePass:
    """All layers and the head as one call."""

    def __init__(self, compiled: ops.ForwardPass, backend: ops.Backend) -> None:
        self._compiled, self._backend = compiled, backend

    def logits(self, batch: Batch, arena: Tensor) -> Tensor:
        return self._compiled.logits(*_numbers(batch), batch.attention, arena)

    def signals(
        self, batch: Batch, arena: Tensor, vocabulary: int, keep: bool, fused: bool
    ) -> tuple[ops.Confidence, Tensor | None]:
        logits = self._compiled.logits(*_numbers(batch), batch.attention, arena)
        return self._backend.confidence(logits, vocabulary), logits if keep else None

    def split(
        self, batch: Batch, arena: Tensor, vocabulary: int, headless: int
    ) -> tuple[ops.Confidence, Tensor, Tensor]:
        logits, hidden = self._compiled.split(*_numbers(batch), batch.attention, arena, headless)
        return self._backend.confidence(logits, vocabulary), logits, hidden

    def head_logits(self, hidden: Tensor, vocabulary: int) -> Tensor:
        return self._compiled.head_logits(hidden)

    def attended(self, batch: Batch, attention_pairs: int) -> int:
        return self._compiled.attended(batch.attention)


def _numbers(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    return batch.tokens.int(), batch.positions.int(), batch.sampled.int()


def make_pass(
    config: ModelConfig, weights: DecoderWeights, backend: ops.Backend, whole: bool
) -> Pass:
    """One call where ``whole`` allows it and the backend has one for these weights."""
    if whole:
        compiled = backend.forward_pass(
            weights.embedding,
            weights.norm,
            weights.head,
            weights.rope,
            weights.layers,
            config.heads,
            config.norm_eps,
        )
        if compiled is not None:
            return WholePass(compiled, backend)
    return OpByOp(config, weights, backend)
