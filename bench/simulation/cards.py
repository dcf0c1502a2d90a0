"""Cards by name: their data sheets, and the memory that two models leave free on them.

Bandwidths and peaks are those of the data sheets (NVIDIA H100 SXM5, H200 SXM, A100 SXM 80 GB, L40S;
the Ada architecture paper for the RTX 4090), dense, with accumulation in fp32. Memory is the part
that a process can use, in whole GiB: less than the name says, as error correction and the driver
take their share.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.accounting.pricing import weight_bytes
from engine.config import ModelConfig
from engine.errors import SteerError

GIB = 2**30
RESERVE_GIB = 4.0  # assumed: activations, graphs, the driver's context, fragmentation
WEIGHTS = {"bf16": 2, "fp8": 1}  # bytes of an element
KV_BYTES = 2  # keys and values stay in bf16


@dataclass(frozen=True)
class Card:
    """Bytes a second, dense FLOP/s by format, and memory in GiB."""

    bandwidth: float
    bf16: float
    fp8: float
    memory_gib: float

    def peak(self, weights: str) -> float:
        """FLOP/s of products with weights in that format."""
        return self.fp8 if weights == "fp8" else self.bf16


CARDS: dict[str, Card] = {
    "h100": Card(3.35e12, 989.4e12, 1978.9e12, 79),
    "h200": Card(4.8e12, 989.4e12, 1978.9e12, 139),
    "a100": Card(2.039e12, 312e12, 312e12, 79),  # no fp8 units: it computes in bf16
    "l40s": Card(0.864e12, 362.05e12, 733e12, 44),
    "rtx4090": Card(1.008e12, 165.2e12, 330.3e12, 23),
}


def resident_bytes(shapes: tuple[ModelConfig, ModelConfig], weights: str) -> int:
    """Bytes that the weights of both models occupy; an untied embedding counts as well."""
    element = WEIGHTS[weights]
    embeddings = (0 if s.tied else s.vocab_size * s.hidden_size * element for s in shapes)
    return sum(weight_bytes(s, element) for s in shapes) + sum(embeddings)


def free_gib(name: str, held: float) -> float:
    """GiB left for keys and values by ``held`` bytes of weights; 0 or less if those do not fit."""
    return CARDS[name].memory_gib - held / GIB - RESERVE_GIB


def arena_bytes(
    name: str, shapes: tuple[ModelConfig, ModelConfig], weights: str, wanted_gib: float | None
) -> int:
    """Bytes of the arena on a named card: the size wanted, or all that is left.

    SteerError if the weights do not fit, or the arena next to them.
    """
    held = resident_bytes(shapes, weights) / GIB
    memory = CARDS[name].memory_gib
    left = free_gib(name, held * GIB)
    books = f"{memory:g} GiB less {held:.1f} of {weights} weights and a reserve of {RESERVE_GIB:g}"
    if left <= 0:
        raise SteerError(
            f"--card {name}: the weights do not fit: {books}; take a larger card, a smaller pair"
            + (" or --weights fp8" if weights == "bf16" else "")
        )
    if wanted_gib is not None and wanted_gib > left:
        raise SteerError(f"--memory {wanted_gib:g}: {name} has {left:.1f} GiB left: {books}")
    return int((left if wanted_gib is None else wanted_gib) * GIB)
