"""The decoder: a Qwen2-style transformer over the paged arena."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from engine.config import ModelConfig
from kernels import ops


@dataclass(frozen=True)
class Layer:
    """Weights of one layer; query, key and value fused, gate and up fused. [out, in]."""

    attention_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor
    output: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


@dataclass(frozen=True)
class Batch:
    """One tick of one model.

    tokens, positions: [rows] int64.
    sampled: int64, the rows whose logits are wanted.
    attention: where keys go and what each row reads.
    """

    tokens: Tensor
    positions: Tensor
    sampled: Tensor
    attention: ops.AttentionPlan


class Decoder:
    """Weights of one model and its forward pass. Holds no KV: that lives in the arena."""

    def __init__(
        self, config: ModelConfig, weights: Mapping[str, Tensor], max_context: int
    ) -> None:
        """``weights`` by Hugging Face name, as ``load_weights`` returns them."""
        self.config = config
        self.embedding = weights["model.embed_tokens.weight"]
        self.norm = weights["model.norm.weight"]
        self.head = self.embedding if config.tied else weights["lm_head.weight"]
        self.layers = [self._layer(weights, f"model.layers.{i}") for i in range(config.layers)]
        self.rope = ops.rope_tables(
            max_context, config.head_dim, config.rope_theta, self.embedding.dtype
        )

    @staticmethod
    def _layer(weights: Mapping[str, Tensor], prefix: str) -> Layer:
        def fused(room: str, names: tuple[str, ...], part: str) -> Tensor:
            return torch.cat([weights[f"{prefix}.{room}.{n}_proj.{part}"] for n in names])

        return Layer(
            attention_norm=weights[f"{prefix}.input_layernorm.weight"],
            qkv=fused("self_attn", ("q", "k", "v"), "weight"),
            qkv_bias=fused("self_attn", ("q", "k", "v"), "bias"),
            output=weights[f"{prefix}.self_attn.o_proj.weight"],
            mlp_norm=weights[f"{prefix}.post_attention_layernorm.weight"],
            gate_up=fused("mlp", ("gate", "up"), "weight"),
            down=weights[f"{prefix}.mlp.down_proj.weight"],
        )

    def tensors(self) -> list[Tensor]:
        """All weights, in a fixed order."""
        layers = [getattr(layer, f.name) for layer in self.layers for f in fields(layer)]
        return [self.embedding, self.norm, self.head, *layers]

    @torch.inference_mode()
    def forward(self, batch: Batch, arena: Tensor) -> Tensor:
        """Write the batch's keys and values into ``arena`` and return its sampled rows' logits.

        Returns:
            [sampled, vocab_size] fp32, padding ids of the head included.
        """
        eps = self.config.norm_eps
        x = self.embedding[batch.tokens]
        cosine, sine = self.rope[:, batch.positions, None]
        for index, layer in enumerate(self.layers):
            h = ops.rms_norm(x, layer.attention_norm, eps)
            mixed = self._attention(index, layer, h, cosine, sine, batch, arena)
            h = ops.add_rms_norm(x, mixed, layer.mlp_norm, eps)
            gated = ops.silu_mul(ops.linear(h, layer.gate_up))
            x = x + ops.linear(gated, layer.down)
        x = ops.rms_norm(x[batch.sampled], self.norm, eps)
        return ops.linear(x, self.head).float()

    def _attention(
        self, index: int, layer: Layer, h: Tensor, cosine: Tensor, sine: Tensor, batch: Batch,
        arena: Tensor,
    ) -> Tensor:  # fmt: skip
        c = self.config
        qkv = ops.linear(h, layer.qkv, layer.qkv_bias).view(h.shape[0], -1, c.head_dim)
        query, key, value = qkv.split([c.heads, c.kv_heads, c.kv_heads], 1)
        query, key = ops.apply_rope(query, cosine, sine), ops.apply_rope(key, cosine, sine)
        ops.write_kv(arena, batch.attention, index, key, value)
        mixed = ops.paged_attention(arena, batch.attention, index, query)
        return ops.linear(mixed.flatten(1), layer.output)
