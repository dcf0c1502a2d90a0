"""Turns shapes and counts into FLOPs and bytes.

FLOPs are those of matrix products, two per multiply-add, without norms, rotations and softmax.
There are two counts: *useful* FLOPs (causal attention, no padding) price a ledger and appear in
tables; *executed* FLOPs are those that the CPU path ran, padding included.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from engine._core import LARGE
from engine.accounting.ledger import Usage
from engine.accounting.passes import DRAWN
from engine.config import ROLES, ModelConfig
from engine.models.footprint import read_bytes

ACCOUNTINGS = ("decode", "catchup", "reprefill")


@dataclass(frozen=True)
class Price:
    """FLOPs of one model: per computed row, per attended key, per row of the head."""

    row: int
    key: int
    head: int

    @classmethod
    def of(cls, shape: ModelConfig) -> Price:
        """Prices of a shape; embedding look-ups cost nothing, padding rows of the head count."""
        attention = shape.hidden_size * (2 * shape.query_width + 2 * shape.kv_width)
        mlp = 3 * shape.hidden_size * shape.intermediate_size
        return cls(
            row=2 * shape.layers * (attention + mlp),
            key=2 * shape.layers * 2 * shape.query_width,
            head=2 * shape.hidden_size * shape.vocab_size,
        )


def useful_flops(usage: Usage, role: str, price: Price, accounting: str) -> int:
    """FLOPs of one model under one accounting.

    ``decode``: rows that gave a token or a guess, kept or dropped (the usual count in papers).
    ``catchup``: all rows, and the head where an audit or a prompt's log-probabilities used it: the
        work of this engine.
    ``reprefill``: the decode rows, and the whole prefix at each entry of the model: the work of a
    server that keeps no KV between calls.

    ValueError on an unknown accounting.
    """
    if accounting not in ACCOUNTINGS:
        raise ValueError(f"unknown accounting {accounting!r}: one of {', '.join(ACCOUNTINGS)}")
    counts = usage.rows[ROLES.index(role)]
    decoded = counts[DRAWN].sum(0)
    computed = decoded
    if accounting == "catchup":
        computed = counts.sum(0)
    elif accounting == "reprefill":
        computed = decoded + usage.entries[ROLES.index(role)]
    rows, keys = map(int, computed)
    heads = int(decoded[0])
    if accounting != "decode":
        heads += int(usage.scored[ROLES.index(role)])
        heads += usage.audited if role == ROLES[LARGE] else 0
    return rows * price.row + keys * price.key + heads * price.head


def pair_flops(usage: Usage, shapes: tuple[ModelConfig, ModelConfig], accounting: str) -> int:
    """FLOPs of both models together."""
    return sum(
        useful_flops(usage, role, Price.of(shape), accounting)
        for role, shape in zip(ROLES, shapes, strict=True)
    )


@dataclass
class Executed:
    """FLOPs that forward passes of one model executed, by term."""

    linear: int = 0
    attention: int = 0
    head: int = 0

    def add(self, shape: ModelConfig, rows: int, sampled: int, groups: Iterable[int]) -> None:
        """Add one forward pass.

        Args:
            rows: rows of the batch.
            sampled: rows that went through the head.
            groups: for each attention group, sequences x padded queries x padded keys.
        """
        price = Price.of(shape)
        self.linear += rows * price.row
        self.attention += sum(groups) * price.key
        self.head += sampled * price.head


def weight_bytes(shape: ModelConfig, element_bytes: int) -> int:
    """Bytes of weights that one forward pass reads: all but the embedding, head included.

    ``element_bytes``: bytes of an element that is not quantised.
    """
    return read_bytes(shape, element_bytes)


def bytes_moved(
    usage: Usage, ticks: tuple[int, int], shapes: tuple[ModelConfig, ModelConfig], element: int
) -> dict[str, int]:
    """Bytes of weights (read once per tick) and of KV (read per key, written per row)."""
    weights = sum(t * weight_bytes(s, element) for t, s in zip(ticks, shapes, strict=True))
    kv = 0
    for model, shape in enumerate(shapes):
        rows, keys = usage.rows[model].sum(0).tolist()
        kv += (rows + keys) * shape.kv_bytes_per_token(element)
    return {"weights": weights, "kv": kv}
