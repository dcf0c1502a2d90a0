"""Pairs of made-up models that are small enough for a CPU, and named pairs with fewer layers."""

from __future__ import annotations

from dataclasses import replace

from engine.config import ModelConfig, Quantisation
from engine.config.expert_mixtures import refuse_mixtures
from engine.config.pairs import NAMED_PAIRS, Pair
from engine.errors import SteerError

# Two sizes: one for CI, one whose large model does not fit a CPU's cache.
SCALED: dict[str, tuple[ModelConfig, ModelConfig]] = {
    "dummy-tiny": (
        ModelConfig(512, 64, 256, 2, 4, 2, 16, tied=True),
        ModelConfig(512, 256, 1024, 4, 4, 2, 64),
    ),
    "dummy-cpu": (
        ModelConfig(4096, 256, 1024, 4, 4, 2, 64, tied=True),
        ModelConfig(4096, 768, 3072, 8, 12, 2, 64),
    ),
}
# How the linear layers of a large model can be packed: as many public checkpoints are.
PACKINGS = {
    "int4": Quantisation("packed", 4, 128),
    "fp8": Quantisation("fp8", 8, strategy="block", block=(128, 128)),
}
# Smaller than the default, for a card that does not hold that one; largest first.
SMALLER = ("qwen-1.5b/qwen-14b", "qwen-1.5b/qwen-7b", "qwen-0.5b/qwen-1.5b")
DUMMY_PAIRS = (*SCALED, *(name for name in NAMED_PAIRS if "/" in name))


def dummy_pair(name: str, layers: int | None = None, quantise: str | None = None) -> Pair:
    """A pair without a checkpoint.

    Args:
        name: one of ``DUMMY_PAIRS``.
        layers: replaces the depth of both models.
        quantise: how the large model's linear layers are packed, one of ``PACKINGS``.
    """
    refuse_mixtures(name)
    if name not in DUMMY_PAIRS:
        raise SteerError(f"--pair: no shapes for {name!r}; known: {', '.join(DUMMY_PAIRS)}")
    if quantise is not None and quantise not in PACKINGS:
        raise SteerError(f"--quantise: unknown {quantise!r}; known: {', '.join(PACKINGS)}")
    small, large = SCALED.get(name) or Pair(name).shapes
    if layers is not None:
        small, large = replace(small, layers=layers), replace(large, layers=layers)
        name = f"{name} with {layers} layers"
    if quantise is not None:
        large = replace(large, quantisation=PACKINGS[quantise])
    return Pair(name, made_up=(small, large))
