"""Mixtures of experts by name: what one would run instead of a routed pair.

The engine cannot run them. By their shapes they are priced, and simulated.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.config import ModelConfig
from engine.errors import SteerError


@dataclass(frozen=True)
class ExpertMixture:
    """The shape of a decoder whose MLPs are mixtures of experts, in every layer. In elements.

    row_shape: the dense model that one row meets: attention and head, and as its MLP the experts
        that are chosen, side by side.
    experts: of a layer.
    chosen: experts of a layer that a row goes through.
    expert_bits: of an expert's weight as published, scales included; None where experts are stored
        like everything else.
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
            151936, hidden, 8 * width, layers, heads, 4, 128, max_position=40960, qkv_bias=False,
            qk_norm=True,
        ),
        experts=128,
        chosen=8,
    )  # fmt: skip


def _gpt_oss(layers: int, experts: int) -> ExpertMixture:
    """Experts in MXFP4: 4 bits, and a scale of 8 for each 32 of them."""
    return ExpertMixture(
        ModelConfig(
            201088, 2880, 4 * 2880, layers, 64, 8, 64, max_position=131072, rope_theta=150000.0,
            norm_eps=1e-5, output_bias=True,
        ),
        experts=experts,
        chosen=4,
        expert_bits=4.25,
        biased=True,
    )  # fmt: skip


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
