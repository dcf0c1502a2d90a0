"""steer-engine: a small and a large language model that write one answer together."""

from engine.aio import AsyncEngine
from engine.config import EngineConfig, Pair
from engine.engine import Engine
from engine.errors import QueueFullError, SteerError
from engine.ledger import Usage
from engine.params import SamplingParams
from engine.relay import Prompt
from engine.request import Completion, Step, TokenLogprobs
from engine.routing.audit import Audit
from engine.routing.calibration import Calibration
from engine.routing.judges import AuditOnly, Judge
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
from engine.tokenizer import Tokenizer

__all__ = [
    "AfterThinking",
    "AsyncEngine",
    "Audit",
    "AuditOnly",
    "Boundary",
    "Calibration",
    "Cascade",
    "Completion",
    "CostAware",
    "Decision",
    "Engine",
    "EngineConfig",
    "Judge",
    "Pair",
    "Policy",
    "Prompt",
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
    "Tokenizer",
    "Usage",
    "Window",
]
