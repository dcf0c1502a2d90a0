"""The decoder: a transformer of the Llama and Qwen families over the paged arena."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields

import torch
from torch import Tensor

from engine.config import ROWS_AT_ONCE, ModelConfig
from engine.models.passes import Batch, DecoderWeights, Layer, make_pass
from engine.models.rope import rope_table
from kernels import ops

_SCORED_ROWS = 64  # whose logits are there at once


class Decoder:
    """Weights of one model and its forward pass. Holds no KV: that lives in the arena."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, ops.Weight],
        max_context: int,
        backend: ops.Backend,
        cpu_kernels: bool = True,
    ) -> None:
        """
        Args:
            weights: by the names of the layout, as ``load_weights`` returns them.
            backend: what computes on the device of the weights.
            cpu_kernels: whether a pass on a CPU may be one call; without, it goes op by op.
        """
        self.config = config
        self.embedding = _plain(weights["model.embed_tokens.weight"])
        self.norm = _plain(weights["model.norm.weight"])
        self.head = self.embedding if config.tied else _plain(weights["lm_head.weight"])
        self.layers = [self._layer(weights, f"model.layers.{i}") for i in range(config.layers)]
        self.rope = rope_table(config, max_context).to(self.embedding.device)
        self._backend = backend
        kept = DecoderWeights(self.embedding, self.norm, self.head, self.rope, self.layers)
        self._pass = make_pass(config, kept, backend, whole=cpu_kernels)

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

    @torch.inference_mode()
    def forward(self, batch: Batch, arena: Tensor) -> Tensor:
        """Write the batch's keys and values into ``arena`` and return its sampled rows' logits.

        Returns:
            [sampled, vocab_size] fp32, padding ids of the head included.
        """
        return self._pass.logits(batch, arena)

    @torch.inference_mode()
    def signals(
        self, batch: Batch, arena: Tensor, vocabulary: int, keep: bool, fused: bool = True
    ) -> tuple[ops.Confidence, Tensor | None]:
        """A pass that ends in the statistics of the sampled rows, and their logits if ``keep``.

        ``vocabulary``: ids from here on are padding of the head and take no part. ``fused``: see
        ``Backend.lm_head``.
        """
        return self._pass.signals(batch, arena, vocabulary, keep, fused)

    @torch.inference_mode()
    def scored(
        self, batch: Batch, arena: Tensor, vocabulary: int, targets: Tensor, listed: int, count: int
    ) -> tuple[ops.Confidence, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """A pass whose last sampled rows predict known tokens; the others as in ``signals``.

        Args:
            targets: [scored], the tokens after the last ``scored`` of the sampled rows.
            listed: of these, at the end, rows whose likeliest tokens are wanted too.
            count: how many likeliest tokens.

        Returns:
            Statistics and logits of the other rows, ``scores`` of the scored rows that are not
            listed, and the parts of ``token_logprobs`` of those that are.
        """
        confidence, logits, hidden = self._pass.split(batch, arena, vocabulary, len(targets))
        plain = len(targets) - listed
        scores = self.scores(hidden[:plain], targets[:plain], vocabulary)
        found = self.token_logprobs(hidden[plain:], targets[plain:], vocabulary, count)
        return confidence, logits, scores, *found

    def attended(self, batch: Batch, attention_pairs: int) -> int:
        """Pairs of query and key that a pass works on; ``attention_pairs``: queries times keys."""
        return self._pass.attended(batch, attention_pairs)

    @torch.inference_mode()
    def scores(self, hidden: Tensor, targets: Tensor, vocabulary: int) -> Tensor:
        """Log-probability of the token after each row, fp64 [rows].

        Args:
            hidden: [rows, hidden_size], of ``Pass.split``; logits are made for a few rows at a
                time.
            targets: [rows], the tokens.
            vocabulary: ids from here on are padding of the head and take no part.
        """
        if not len(targets):
            return hidden.new_empty(0, dtype=torch.float64)
        return torch.cat(
            [
                self._backend.score(logits, vocabulary, tokens)
                for logits, tokens in self._scored_logits(hidden, targets, vocabulary)
            ]
        )

    @torch.inference_mode()
    def token_logprobs(
        self, hidden: Tensor, targets: Tensor, vocabulary: int, count: int
    ) -> ops.LogProbs:
        """As ``scores``, and the ``count`` likeliest tokens of each row; see ``Backend``."""
        found = [
            self._backend.token_logprobs(part, vocabulary, own, count)
            for logits, tokens in self._scored_logits(hidden, targets, vocabulary)
            # These are widened: memory for more rows than a sampler's is not set aside.
            for part, own in zip(
                logits.split(ROWS_AT_ONCE), tokens.split(ROWS_AT_ONCE), strict=True
            )
        ]
        if not found:
            none = hidden.new_empty(0, dtype=torch.float64)
            return ops.LogProbs(none, none.view(0, 0), targets.new_empty(0, 0))
        return ops.LogProbs(*map(torch.cat, zip(*found, strict=True)))

    def _scored_logits(
        self, hidden: Tensor, targets: Tensor, vocabulary: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits and targets (int64) of a few rows at a time."""
        for first in range(0, len(targets), _SCORED_ROWS):
            rows = slice(first, first + _SCORED_ROWS)
            yield self._pass.head_logits(hidden[rows], vocabulary), targets[rows].long()


def _plain(weight: ops.Weight) -> Tensor:
    """A weight that no checkpoint quantises."""
    assert isinstance(weight, Tensor)
    return weight
