"""Bytes of a model's weights as they are kept: packed where the checkpoint packs them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from engine.config import ModelConfig
from engine.models.layout import Part, Table, model_parts
from engine.models.quantisation import packed_bytes

_EMBEDDING = "model.embed_tokens.weight"


def stored_bytes(config: ModelConfig, element_bytes: int) -> int:
    """Of all weights. Every linear layer of a quantised checkpoint counts as packed."""
    return sum(size for _, size in _sizes(config, element_bytes))


def read_bytes(config: ModelConfig, element_bytes: int) -> int:
    """What one forward pass reads of them: all but the embedding, the head included."""
    return sum(
        size for part, size in _sizes(config, element_bytes)
        if part.name != _EMBEDDING or config.tied
    )  # fmt: skip


def _sizes(config: ModelConfig, element_bytes: int) -> Iterator[tuple[Part, int]]:
    packing = config.quantisation
    for part in model_parts(config):
        if isinstance(part, Table):
            yield part, math.prod(part.shape) * element_bytes
            continue
        bias = part.rows * element_bytes if part.biased else 0
        if packing is None:
            yield part, part.rows * part.columns * element_bytes + bias
        else:
            yield part, sum(packed_bytes(packing, r, part.columns) for _, r in part.parts) + bias
