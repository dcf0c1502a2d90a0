"""steer-engine: a small and a large language model that write one answer together."""

from engine.config import EngineConfig, Pair
from engine.engine import Engine
from engine.errors import SteerError
from engine.request import Completion, SamplingParams, Step
from engine.routing.calibration import Calibration
from engine.routing.policies import Boundary, Decision, Policy, Random, Steer, Threshold
from engine.routing.signals import Signals

__all__ = [
    "Boundary",
    "Calibration",
    "Completion",
    "Decision",
    "Engine",
    "EngineConfig",
    "Pair",
    "Policy",
    "Random",
    "SamplingParams",
    "Signals",
    "Steer",
    "SteerError",
    "Step",
    "Threshold",
]
