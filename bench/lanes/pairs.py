"""Pairs of made-up models that are small enough for a CPU, and named pairs with fewer layers."""

from __future__ import annotations

from dataclasses import replace

from engine.config import NAMED_PAIRS, ModelConfig, Pair
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
DUMMY_PAIRS = (*SCALED, *(name for name in NAMED_PAIRS if "/" in name))


def dummy_pair(name: str, layers: int | None = None) -> Pair:
    """A pair without a checkpoint; ``layers`` replaces the depth of both models."""
    if name not in DUMMY_PAIRS:
        raise SteerError(f"--pair: no shapes for {name!r}; known: {', '.join(DUMMY_PAIRS)}")
    small, large = SCALED.get(name) or Pair.named(name).shapes
    if layers is None:
        return Pair(name, made_up=(small, large))
    cut = replace(small, layers=layers), replace(large, layers=layers)
    return Pair(f"{name} with {layers} layers", made_up=cut)
