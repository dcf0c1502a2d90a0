"""Mixtures of experts by name: the alternative to a routed pair.

The engine cannot run them; their shapes serve to price and to simulate them.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.config import ModelConfig
from engine.errors import SteerError


@dataclass(frozen=True)
class ExpertMixture:
    """The shape of a decoder with a mixture of experts as the MLP of every layer. In elements.

    row_shape: the dense model that computes one row: attention, head, and as its MLP the chosen
        experts side by side.
    experts: experts of a layer.
    chosen: experts of a layer that compute a row.
    expert_bits: bits of an expert's weight as published, scales included; None where experts are
        stored like all other weights.
    biased: router and experts add biases, and each attention head has a sink (gpt-oss).
    """

    row_shape: ModelConfig
    experts: int
    chosen: int
    expert_bits: float | None = None
    biased: bool = False

    @property
    def expert_width(self) -> int:
        """Columns between the two products of one expert."""
        return self.row_shape.intermediate_size // self.chosen


def _qwen3(hidden: int, layers: int, heads: int, width: int) -> ExpertMixture:
    return ExpertMixture(
        ModelConfig(
            151936,
            hidden,
            8 * width,
            layers,
            heads,
            4,
            128,
            max_position=40960,
            qkv_bias=False,
            qk_norm=True,
        ),
        experts=128,
        chosen=8,
    )


def _gpt_oss(layers: int, experts: int) -> ExpertMixture:
    """Experts in MXFP4: 4 bits a weight, and an 8-bit scale for each 32 weights."""
    return ExpertMixture(
        ModelConfig(
            201088,
            2880,
            4 * 2880,
            layers,
            64,
            8,
            64,
            max_position=131072,
            rope_theta=150000.0,
            norm_eps=1e-5,
            output_bias=True,
        ),
        experts=experts,
        chosen=4,
        expert_bits=4.25,
        biased=True,
    )


NAMED_MIXTURES: dict[str, ExpertMixture] = {
    # Qwen/Qwen3-30B-A3B, Qwen/Qwen3-235B-A22B
    "qwen3-30b-a3b": _qwen3(2048, 48, 32, 768),
    "qwen3-235b-a22b": _qwen3(4096, 94, 64, 1536),
    # openai/gpt-oss-20b, openai/gpt-oss-120b
    "gpt-oss-20b": _gpt_oss(24, 32),
    "gpt-oss-120b": _gpt_oss(36, 128),
}


def refuse_mixtures(pair: str) -> None:
    """SteerError if a pair's name, or half of it, is that of a mixture of experts."""
    for name in pair.split("/"):
        if name in NAMED_MIXTURES:
            raise SteerError(
                f"{name} is a mixture of experts, which this engine does not run; "
                "bench.flops and bench.simulate price and simulate it (--beside)"
            )
