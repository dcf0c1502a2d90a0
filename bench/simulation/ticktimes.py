"""How long a tick takes: the simulator's protocol, and a roofline that implements it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from bench.alone import Alone
from bench.simulation.cards import KV_BYTES, WEIGHTS, Card
from engine.accounting.pricing import Price, weight_bytes
from engine.config import ModelConfig


class TickTimes(Protocol):
    """The time T(model, batch, context, span) of a tick."""

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
    """The work of a tick of one model, in seconds at the card's full speed."""

    kv: float  # to read or write one token's keys and values
    row: float  # to compute one row, attention left out
    key: float  # to attend to one key from one row
    head: float  # to compute one row of logits

    @classmethod
    def of(cls, shape: ModelConfig, price: Price, card: Card, weights: str) -> _Terms:
        peak = card.peak(weights)
        return cls(
            kv=shape.kv_bytes_per_token(KV_BYTES) / card.bandwidth,
            row=price.row / peak,
            key=price.key / card.bf16,
            head=price.head / peak,
        )

    def seconds(self, weights: float, batch: float, context: float, span: float) -> float:
        """Seconds of a tick that takes ``weights`` seconds to read the weights."""
        context = max(context, span)  # a row sees itself: less is no tick
        moved = weights + self.kv * batch * (context + span)
        keys = span * context - span * (span - 1) / 2
        computed = batch * (self.row * span + self.key * keys + self.head)
        return max(moved, computed)


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
        """``efficiency``: share of the roofline reached; ``overhead``: further seconds per tick."""
        self._efficiency = efficiency
        self._overhead = overhead
        self._weights = [weight_bytes(s, WEIGHTS[weights]) / card.bandwidth for s in shapes]
        self._terms = [_Terms.of(s, Price.of(s), card, weights) for s in shapes]

    def seconds(self, model: int, batch: float, context: float, span: float) -> float:
        """See :class:`TickTimes`."""
        taken = self._terms[model].seconds(self._weights[model], batch, context, span)
        return taken / self._efficiency + self._overhead


class AloneRoofline:
    """The roofline of one model that has the card to itself, whichever lane it runs in.

    For a mixture of experts a tick reads the experts that its rows are expected to choose
    (:mod:`bench.expert_mixtures`). Experts in 4 bits are multiplied in bf16: these cards have no
    units for them. Sliding windows are not modelled: every layer sees all keys.
    """

    def __init__(
        self, model: Alone, card: Card, weights: str, efficiency: float, overhead: float
    ) -> None:
        """Arguments as for :class:`Roofline`."""
        self._efficiency = efficiency
        self._overhead = overhead
        self._model = model
        read = model.read_bytes(WEIGHTS[weights])
        self._always, self._experts = (size / card.bandwidth for size in read)
        self._terms = _Terms.of(model.shape, model.price, card, model.weights(weights))

    def seconds(self, model: int, batch: float, context: float, span: float) -> float:
        """See :class:`TickTimes`."""
        weights = self._always + self._experts * self._model.coverage(batch * span)
        taken = self._terms.seconds(weights, batch, context, span)
        return taken / self._efficiency + self._overhead
