"""The decoder: a transformer of the Llama and Qwen families over the paged arena."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from engine.config import ModelConfig
from engine.models.rope import rope_table
from kernels import ops

_SCORED_ROWS = 64  # whose logits are there at once


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


class Decoder:
    """Weights of one model and its forward pass. Holds no KV: that lives in the arena."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, ops.Weight],
        max_context: int,
        cpu_kernels: bool = True,
    ) -> None:
        """
        Args:
            weights: by the names of the layout, as ``load_weights`` returns them.
            cpu_kernels: whether a pass on a CPU may be one call; without, it goes op by op.
        """
        self.config = config
        self.embedding = _plain(weights["model.embed_tokens.weight"])
        self.norm = _plain(weights["model.norm.weight"])
        self.head = self.embedding if config.tied else _plain(weights["lm_head.weight"])
        self.layers = [self._layer(weights, f"model.layers.{i}") for i in range(config.layers)]
        self.rope = rope_table(config, max_context).to(self.embedding.device)
        self._pass = None
        if cpu_kernels:
            self._pass = ops.forward_pass(
                self.embedding, self.norm, self.head, self.rope, self.layers, config.heads,
                config.norm_eps,
            )  # fmt: skip

    @staticmethod
    def _layer(weights: Mapping[str, ops.Weight], prefix: str) -> Layer:
        def vector(name: str) -> Tensor | None:
            weight = weights.get(f"{prefix}.{name}")
            return None if weight is None else _plain(weight)

        return Layer(
            attention_norm=_plain(weights[f"{prefix}.input_layernorm.weight"]),
            qkv=weights[f"{prefix}.self_attn.qkv_proj.weight"],
            output=weights[f"{prefix}.self_attn.o_proj.weight"],
            mlp_norm=_plain(weights[f"{prefix}.post_attention_layernorm.weight"]),
            gate_up=weights[f"{prefix}.mlp.gate_up_proj.weight"],
            down=weights[f"{prefix}.mlp.down_proj.weight"],
            qkv_bias=vector("self_attn.qkv_proj.bias"),
            query_norm=vector("self_attn.q_norm.weight"),
            key_norm=vector("self_attn.k_norm.weight"),
            output_bias=vector("self_attn.o_proj.bias"),
            gate_up_bias=vector("mlp.gate_up_proj.bias"),
            down_bias=vector("mlp.down_proj.bias"),
        )

    @property
    def bytes(self) -> int:
        """Bytes of all weights in memory; tied weights count once."""
        return sum({t.data_ptr(): t.numel() * t.itemsize for t in self.tensors()}.values())

    def tensors(self) -> list[Tensor]:
        """All weights as stored in memory, in an order that fingerprints depend on."""
        layers = [getattr(layer, f.name) for layer in self.layers for f in fields(layer)]
        kept = [t for w in layers if w is not None for t in ops.weight_tensors(w)]
        return [self.embedding, self.norm, self.head, *kept]

    def forward(self, batch: Batch, arena: Tensor) -> Tensor:
        """Write the batch's keys and values into ``arena`` and return its sampled rows' logits.

        Returns:
            [sampled, vocab_size] fp32, padding ids of the head included.
        """
        with torch.inference_mode():
            if self._pass is None or not ops.compiled(arena):
                return ops.linear(self.hidden(batch, arena), self.head).float()
            numbers = (batch.tokens.int(), batch.positions.int(), batch.sampled.int())
            return self._pass.logits(*numbers, batch.attention, arena)

    @torch.inference_mode()
    def hidden(self, batch: Batch, arena: Tensor) -> Tensor:
        """As ``forward``, but what the head is to be multiplied with, [sampled, hidden_size]."""
        eps = self.config.norm_eps
        x = torch.nn.functional.embedding(batch.tokens, self.embedding)
        h = ops.rms_norm(x, self.layers[0].attention_norm, eps)
        following = [*(layer.attention_norm for layer in self.layers[1:]), self.norm]
        for index, (layer, norm) in enumerate(zip(self.layers, following, strict=True)):
            mixed = self._attention(index, layer, h, batch, arena)
            h = ops.add_rms_norm(x, mixed, layer.mlp_norm, eps)
            gated = ops.silu_mul(ops.linear(h, layer.gate_up, layer.gate_up_bias))
            written = ops.linear(gated, layer.down, layer.down_bias)
            if norm is self.norm:  # after it nobody needs the other rows
                x, written = (part.index_select(0, batch.sampled) for part in (x, written))
            h = ops.add_rms_norm(x, written, norm, eps)
        return h

    def _attention(
        self, index: int, layer: Layer, h: Tensor, batch: Batch, arena: Tensor
    ) -> Tensor:
        norms = None
        if layer.query_norm is not None and layer.key_norm is not None:
            norms = layer.query_norm, layer.key_norm
        query = ops.rope_kv(
            ops.linear(h, layer.qkv), layer.qkv_bias, self.rope, batch.positions, arena,
            batch.attention, index, norms, self.config.norm_eps,
        )  # fmt: skip
        mixed = ops.paged_attention(arena, batch.attention, index, query)
        return ops.linear(mixed.flatten(1), layer.output, layer.output_bias)

    def statistics(
        self, batch: Batch, arena: Tensor, vocabulary: int, keep: bool, fused: bool = True
    ) -> tuple[ops.Confidence, Tensor | None]:
        """A pass that ends in the statistics of the sampled rows, and their logits if ``keep``.

        ``vocabulary``: ids from here on are padding of the head and take no part. ``fused``: see
        ``ops.lm_head``.
        """
        if self._pass is None or not ops.compiled(arena):
            return ops.lm_head(self.hidden(batch, arena), self.head, vocabulary, keep, fused)
        logits = self.forward(batch, arena)
        return ops.confidence(logits, vocabulary), logits if keep else None

    @torch.inference_mode()
    def audited(
        self, batch: Batch, arena: Tensor, vocabulary: int, targets: Tensor
    ) -> tuple[ops.Confidence, Tensor, Tensor]:
        """A pass whose last sampled rows foretell known tokens; the others as in ``statistics``.

        Args:
            targets: [audited], the tokens behind the last ``audited`` of the sampled rows.

        Returns:
            Statistics and logits of the other rows, and ``scores`` of the audited ones.
        """
        drawing = len(batch.sampled) - len(targets)
        if self._pass is None or not ops.compiled(arena):
            hidden = self.hidden(batch, arena)
            found, logits = ops.lm_head(hidden[:drawing], self.head, vocabulary, True)
            assert logits is not None
            return found, logits, self.scores(hidden[drawing:], targets, vocabulary)
        numbers = (batch.tokens.int(), batch.positions.int(), batch.sampled.int())
        logits, hidden = self._pass.split(*numbers, batch.attention, arena, len(targets))
        return ops.confidence(logits, vocabulary), logits, self.scores(hidden, targets, vocabulary)

    def attended(self, batch: Batch, attention_pairs: int) -> int:
        """Pairs of query and key that a pass works on; ``attention_pairs``: queries times keys."""
        if self._pass is None or not ops.compiled(batch.tokens):
            return ops.attended(batch.attention, attention_pairs)
        return self._pass.attended(batch.attention)

    @torch.inference_mode()
    def scores(self, hidden: Tensor, targets: Tensor, vocabulary: int) -> Tensor:
        """Log-probability of a token behind each row, fp64 [rows].

        Args:
            hidden: [rows, hidden_size], of ``hidden``; logits are made for a few rows at a time.
            targets: [rows], the tokens.
            vocabulary: ids from here on are padding of the head and take no part.
        """
        found = [
            ops.score(ops.head_logits(rows, self.head, vocabulary), vocabulary, tokens.long())
            for rows, tokens in zip(
                hidden.split(_SCORED_ROWS), targets.split(_SCORED_ROWS), strict=True
            )
        ]
        return torch.cat(found)


def _plain(weight: ops.Weight) -> Tensor:
    """A weight that no checkpoint quantises."""
    assert isinstance(weight, Tensor)
    return weight
