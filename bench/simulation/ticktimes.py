"""How long a tick takes: the face that the simulator asks, and a roofline behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from bench.simulation.cards import KV_BYTES, WEIGHTS, Card
from engine.config import ModelConfig
from engine.pricing import Price, weight_bytes


class TickTimes(Protocol):
    """T(model, batch, context, span)."""

    def seconds(self, model: int, batch: float, context: float, span: float) -> float:
        """Seconds of a tick that has the card to itself.

        Args:
            model: 0 the small one, 1 the large one.
            batch: sequences in the tick.
            context: keys visible to the last row of a sequence, on average.
            span: rows of a sequence, on average.
        """


@dataclass(frozen=True)
class _Terms:
    """What a tick of one model moves and computes, in seconds at the card's full speed."""

    weights: float  # to read them once
    kv: float  # to read or write one token's keys and values
    row: float  # to compute one row, attention left out
    key: float  # to attend to one key from one row
    head: float  # to compute one row of logits


class Roofline:
    """A tick takes as long as its bytes or its FLOPs, whichever is longer, and an overhead.

    Bytes are the weights, once; the keys and values that each sequence sees, once for all its rows;
    and those that are written. Every sequence is taken to compute one row of logits. Products with
    weights run at the peak of the weights' format, attention at that of bf16.
    """

    def __init__(
        self,
        shapes: tuple[ModelConfig, ModelConfig],
        card: Card,
        weights: str,
        efficiency: float,
        overhead: float,
    ) -> None:
        """``efficiency``: share of the roofline reached; ``overhead``: seconds on top a tick."""
        self._efficiency = efficiency
        self._overhead = overhead
        peak = card.peak(weights)
        self._terms = [
            _Terms(
                weights=weight_bytes(shape, WEIGHTS[weights]) / card.bandwidth,
                kv=shape.kv_bytes_per_token(KV_BYTES) / card.bandwidth,
                row=price.row / peak,
                key=price.key / card.bf16,
                head=price.head / peak,
            )
            for shape, price in ((shape, Price.of(shape)) for shape in shapes)
        ]

    def seconds(self, model: int, batch: float, context: float, span: float) -> float:
        """See :class:`TickTimes`."""
        t = self._terms[model]
        context = max(context, span)  # a row sees itself: less is no tick
        moved = t.weights + t.kv * batch * (context + span)
        keys = span * context - span * (span - 1) / 2
        computed = batch * (t.row * span + t.key * keys + t.head)
        return max(moved, computed) / self._efficiency + self._overhead
