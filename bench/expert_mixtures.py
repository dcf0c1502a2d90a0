"""What a mixture of experts computes, stores and reads: parameters and bytes of a whole model.

A tick of few rows reads few experts, a tick of many rows nearly all. How many is computed for rows
that choose their experts at random, evenly and independently. Real routers have favourites: then
fewer different experts are read, so this is an upper bound.
"""

from __future__ import annotations

from dataclasses import replace

from engine.accounting.pricing import Price
from engine.config.expert_mixtures import ExpertMixture
from engine.models import footprint

PUBLISHED = 2  # bytes of an element outside of the experts where these have a format of their own


def expert_parameters(mixture: ExpertMixture) -> int:
    """Parameters of all experts of all layers."""
    shape, width = mixture.row_shape, mixture.expert_width
    each = 3 * shape.hidden_size * width
    biases = 2 * width + shape.hidden_size if mixture.biased else 0
    return shape.layers * mixture.experts * (each + biases)


def _router_parameters(mixture: ExpertMixture) -> int:
    """Parameters of the routers and of the attention heads' sinks."""
    shape = mixture.row_shape
    more = mixture.experts + shape.heads if mixture.biased else 0
    return shape.layers * (shape.hidden_size * mixture.experts + more)


def _chosen_parameters(mixture: ExpertMixture) -> int:
    """Parameters of the MLPs of ``row_shape``."""
    shape = mixture.row_shape
    return shape.layers * 3 * shape.hidden_size * shape.intermediate_size


def parameters(mixture: ExpertMixture) -> int:
    """All parameters of the model."""
    rest = footprint.stored_bytes(mixture.row_shape, 1) - _chosen_parameters(mixture)
    return rest + _router_parameters(mixture) + expert_parameters(mixture)


def price(mixture: ExpertMixture) -> Price:
    """FLOPs of a row: the experts that it goes through, and the router."""
    dense, shape = Price.of(mixture.row_shape), mixture.row_shape
    return replace(dense, row=dense.row + 2 * shape.layers * shape.hidden_size * mixture.experts)


def coverage(mixture: ExpertMixture, rows: float) -> float:
    """Expected share of a layer's experts that a tick of ``rows`` rows reads."""
    unread: float = (1.0 - mixture.chosen / mixture.experts) ** rows
    return 1.0 - unread


def resident_bytes(mixture: ExpertMixture, element_bytes: int) -> float:
    """Bytes of all weights. ``element_bytes`` counts where experts have no format of their own."""
    rest = parameters(mixture) - expert_parameters(mixture)
    return rest * _plain(mixture, element_bytes) + _expert_bytes(mixture, element_bytes)


def read_bytes(mixture: ExpertMixture, element_bytes: int) -> tuple[float, float]:
    """Bytes of weights that every tick reads (never the embedding), and of all experts.

    A tick reads :func:`coverage` of the latter.
    """
    rest = footprint.read_bytes(mixture.row_shape, 1) - _chosen_parameters(mixture)
    rest += _router_parameters(mixture)
    return rest * _plain(mixture, element_bytes), _expert_bytes(mixture, element_bytes)


def _plain(mixture: ExpertMixture, element_bytes: int) -> int:
    return element_bytes if mixture.expert_bits is None else PUBLISHED


def _expert_bytes(mixture: ExpertMixture, element_bytes: int) -> float:
    bits = 8 * element_bytes if mixture.expert_bits is None else mixture.expert_bits
    return expert_parameters(mixture) * bits / 8
