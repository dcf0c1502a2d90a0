"""The configuration of an engine: the shapes of its models, its settings, its pair."""

from __future__ import annotations

from pathlib import Path

from engine._core import LANE_POLICIES
from engine.config.model_shape import ROLES, ModelConfig, Quantisation, RopeScaling
from engine.config.settings import (
    ARENA_TOKENS,
    DUMMY,
    GRAPHS,
    LOAD_FORMATS,
    PLAN_AHEAD,
    ROWS_AT_ONCE,
    EngineConfig,
)

TINY = Path(__file__).parent.parent / "tiny"  # the embedded pair

__all__ = [
    "ARENA_TOKENS",
    "DUMMY",
    "GRAPHS",
    "LANE_POLICIES",
    "LOAD_FORMATS",
    "PLAN_AHEAD",
    "ROLES",
    "ROWS_AT_ONCE",
    "TINY",
    "EngineConfig",
    "ModelConfig",
    "Quantisation",
    "RopeScaling",
]
