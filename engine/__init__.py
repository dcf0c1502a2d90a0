"""steer-engine: a small and a large language model that write one answer together.

Names are imported at their first use, so that importing the package alone costs little; the first
name that runs a model imports Torch.
"""

from __future__ import annotations

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.accounting.ledger import Usage
    from engine.accounting.speculated import Speculated
    from engine.aio import Answers, AsyncEngine
    from engine.config import EngineConfig
    from engine.config.pairs import Pair
    from engine.engine import Engine
    from engine.errors import ContextLengthError, QueueFullError, SteerError, UnavailableError
    from engine.params import SamplingParams
    from engine.request import Completion, Prompt, Retracted, Step, Times, TokenLogprobs
    from engine.requests.stream import StreamEvent
    from engine.routing.audit import Audit
    from engine.routing.calibration import Calibration
    from engine.routing.guessed import Speculate, Verify
    from engine.routing.judges import AuditOnly, Judge
    from engine.routing.policies import AfterThinking, Cascade, Early, Query, Random, Threshold
    from engine.routing.policy import Boundary, Decision, Policy
    from engine.routing.signals import Signals
    from engine.routing.speculation import Speculation
    from engine.routing.steer import CostAware, Steer
    from engine.routing.steer_paper import SteerPaper
    from engine.routing.steer_served import SteerServed
    from engine.routing.two_way import Sticky, TwoWay
    from engine.routing.windows import Window
    from engine.text.tokenizer import Tokenizer
else:
    _HOMES = {
        "aio": ("Answers", "AsyncEngine"),
        "config": ("EngineConfig",),
        "engine": ("Engine",),
        "errors": ("ContextLengthError", "QueueFullError", "SteerError", "UnavailableError"),
        "accounting.ledger": ("Usage",),
        "accounting.speculated": ("Speculated",),
        "config.pairs": ("Pair",),
        "params": ("SamplingParams",),
        "request": ("Completion", "Prompt", "Retracted", "Step", "Times", "TokenLogprobs"),
        "routing.audit": ("Audit",),
        "routing.calibration": ("Calibration",),
        "routing.judges": ("AuditOnly", "Judge"),
        "routing.guessed": ("Speculate", "Verify"),
        "routing.policies": ("AfterThinking", "Cascade", "Early", "Query", "Random", "Threshold"),
        "routing.policy": ("Boundary", "Decision", "Policy"),
        "routing.signals": ("Signals",),
        "routing.speculation": ("Speculation",),
        "routing.steer": ("CostAware", "Steer"),
        "routing.steer_paper": ("SteerPaper",),
        "routing.steer_served": ("SteerServed",),
        "routing.two_way": ("Sticky", "TwoWay"),
        "routing.windows": ("Window",),
        "requests.stream": ("StreamEvent",),
        "text.tokenizer": ("Tokenizer",),
    }
    _HOME_OF = {name: f"engine.{home}" for home, names in _HOMES.items() for name in names}

    def __getattr__(name):
        if name not in _HOME_OF:
            raise AttributeError(f"module 'engine' has no attribute {name!r}")
        value = globals()[name] = getattr(_import_module(_HOME_OF[name]), name)
        return value

    def __dir__():
        return sorted({*globals(), *__all__})


__all__ = [
    "AfterThinking",
    "Answers",
    "AsyncEngine",
    "Audit",
    "AuditOnly",
    "Boundary",
    "Calibration",
    "Cascade",
    "Completion",
    "ContextLengthError",
    "CostAware",
    "Decision",
    "Early",
    "Engine",
    "EngineConfig",
    "Judge",
    "Pair",
    "Policy",
    "Prompt",
    "Query",
    "QueueFullError",
    "Random",
    "Retracted",
    "SamplingParams",
    "Signals",
    "Speculate",
    "Speculated",
    "Speculation",
    "Steer",
    "SteerError",
    "SteerPaper",
    "SteerServed",
    "Step",
    "Sticky",
    "StreamEvent",
    "Threshold",
    "Times",
    "TokenLogprobs",
    "Tokenizer",
    "TwoWay",
    "UnavailableError",
    "Usage",
    "Verify",
    "Window",
]
