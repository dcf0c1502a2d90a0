"""Bytes that ticks must move, and the floor that the bandwidth sets under their time."""

from __future__ import annotations

from bench.lanes.scripted_engine import Tick
from engine.accounting.pricing import weight_bytes
from engine.config import ModelConfig


def tick_bytes(shape: ModelConfig, element: int, keys: float, rows: float) -> float:
    """Bytes of one tick: all weights once, ``keys`` read of the KV and ``rows`` written to it."""
    return weight_bytes(shape, element) + shape.kv_bytes_per_token(element) * (keys + rows)


def of_bandwidth(shape: ModelConfig, element: int, tick: Tick, bandwidth: float) -> float:
    """The fraction of the bandwidth that a tick reached."""
    moved = tick_bytes(shape, element, tick.sequences * tick.context, tick.rows)
    return moved / (bandwidth * tick.seconds)
