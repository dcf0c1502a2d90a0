"""steer-engine: a small and a large language model that write one answer together."""

from engine.aio import AsyncEngine
from engine.config import EngineConfig, Pair
from engine.engine import Engine
from engine.errors import QueueFullError, SteerError
from engine.params import SamplingParams
from engine.request import Completion, Step, TokenLogprobs
from engine.routing.calibration import Calibration
from engine.routing.policies import (
    AfterThinking,
    Boundary,
    Cascade,
    Decision,
    Policy,
    Query,
    Random,
    Threshold,
)
from engine.routing.signals import Signals
from engine.routing.steer import CostAware, Steer
from engine.routing.windows import Window
from engine.stream import StreamEvent

__all__ = [
    "AfterThinking",
    "AsyncEngine",
    "Boundary",
    "Calibration",
    "Cascade",
    "Completion",
    "CostAware",
    "Decision",
    "Engine",
    "EngineConfig",
    "Pair",
    "Policy",
    "Query",
    "QueueFullError",
    "Random",
    "SamplingParams",
    "Signals",
    "Steer",
    "SteerError",
    "Step",
    "StreamEvent",
    "Threshold",
    "TokenLogprobs",
    "Window",
]
