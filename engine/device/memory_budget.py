"""Bytes of weights, workspaces and the arena on a GPU, computed before they are allocated."""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.config import ROWS_AT_ONCE, EngineConfig, ModelConfig
from engine.errors import SteerError
from engine.models.footprint import stored_bytes
from kernels.ops import WORKSPACE, split_attention_bytes

LEAST_TOKENS = 1024  # smallest useful arena, in tokens of the large model
_EDITED = 80  # bytes per logit while rows are penalised, sorted, or scored by an audit
_SORTED = 120  # bytes per logit while rows are sampled in plain PyTorch


@dataclass(frozen=True)
class CardMemory:
    """Memory of one GPU in bytes.

    fraction: share of ``total`` that may be in use, other programs included.
    """

    name: str
    total: int
    free: int
    fraction: float

    @property
    def usable(self) -> int:
        """Bytes that may still be allocated."""
        return max(0, self.free - math.ceil((1 - self.fraction) * self.total))


def weight_bytes(shape: ModelConfig, element_bytes: int) -> int:
    """Bytes of a model's weights; ``element_bytes``: of an element that is not quantised."""
    return stored_bytes(shape, element_bytes)


def workspace_bytes(shape: ModelConfig, config: EngineConfig, element_bytes: int) -> int:
    """Bytes beside weights and arena that one lane needs: its largest tick and its graphs' pool.

    These are activations of ``max_tick_tokens`` rows; logits of ``drawn_rows`` rows, computed
    with and without graphs, kept for all graphs, and copied up to three times for sampling; partial
    results of split attention; and dequantised parts of packed weights. Ticks without a graph do
    not share the pool.
    """
    rows, sequences = config.max_tick_tokens, config.max_sequences
    recorded = 0 if config.graphs == "off" else max(sequences, min(rows, config.graph_rows))
    wide = 4 * shape.hidden_size + 3 * shape.intermediate_size
    wide += 3 * shape.query_width + 2 * shape.kv_width
    drawn = config.drawn_rows
    logits = (6 * 4 * drawn + _EDITED * ROWS_AT_ONCE) * shape.vocab_size
    if not config.fused_sampling:
        logits += _SORTED * drawn * shape.vocab_size
    partials = sum(
        split_attention_bytes(
            n, sequences, shape.heads, shape.kv_heads, shape.head_dim, element_bytes
        )
        for n in (rows, recorded)
        if n
    )
    dequantised = WORKSPACE if shape.quantisation else 0
    return (rows + recorded) * wide * element_bytes + logits + partials + dequantised


def arena_slabs(
    card: CardMemory, needed: dict[str, int], slab: int, slab_tokens: int, asked: int = 0
) -> int:
    """Slabs of an arena that fit on a GPU beside everything else.

    Args:
        card: the GPU's present memory.
        needed: bytes that are still to be allocated, by purpose, without the arena.
        slab: bytes of a slab.
        slab_tokens: tokens of the large model in a slab.
        asked: slabs wanted; 0 takes all that fit.

    Raises:
        SteerError: if they do not fit: what is needed, what is free, and what would fit.
    """
    least = asked or math.ceil(LEAST_TOKENS / slab_tokens)
    others = sum(needed.values())
    if others + least * slab <= card.usable:
        return asked or (card.usable - others) // slab
    parts = [*needed.items(), (f"an arena of {least * slab_tokens} tokens", least * slab)]
    listed = " + ".join(f"{_gib(size)} GiB for {what}" for what, size in parts if size)
    fitting = (card.usable - others) // slab * slab_tokens
    if fitting >= LEAST_TOKENS:
        advice = f"arena_tokens={fitting} would fit"
    else:
        advice = "free the card, take a smaller pair or dtype, or lower max_tick_tokens"
    raise SteerError(
        f"{card.name}: {_gib(others + least * slab)} GiB are needed ({listed}), "
        f"{_gib(card.usable)} of {_gib(card.free)} GiB free may be used "
        f"(memory_fraction {card.fraction:g}): {advice}"
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"
