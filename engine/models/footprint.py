"""Bytes of a model's weights in memory: packed where the checkpoint packs them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from engine.config import ModelConfig
from engine.models.layout import Part, Table, model_parts
from engine.models.packing import packed_bytes

_EMBEDDING = "model.embed_tokens.weight"


def stored_bytes(config: ModelConfig, element_bytes: int) -> int:
    """Bytes of all weights; layers that a quantised checkpoint left plain count unpacked."""
    return sum(size for _, size in _sizes(config, element_bytes))


def read_bytes(config: ModelConfig, element_bytes: int) -> int:
    """Bytes of weights that one forward pass reads: all but the embedding, head included."""
    return sum(
        size
        for part, size in _sizes(config, element_bytes)
        if part.name != _EMBEDDING or config.tied
    )


def _sizes(config: ModelConfig, element_bytes: int) -> Iterator[tuple[Part, int]]:
    packing = config.quantisation
    for part in model_parts(config):
        if isinstance(part, Table):
            yield part, math.prod(part.shape) * element_bytes
            continue
        bias = part.rows * element_bytes if part.biased else 0
        yield (
            part,
            bias
            + sum(
                rows * part.columns * element_bytes
                if packing is None or name in packing.plain
                else packed_bytes(packing, rows, part.columns)
                for name, rows in part.parts
            ),
        )
