"""Prompts of the embedded pair, and what is asked of it."""

from __future__ import annotations

from bench.tasks import arithmetic
from engine import SamplingParams

PARAMS = SamplingParams(max_tokens=80)
PROMPTS = [p.prompt for p in arithmetic.problems("test", 12, seed=6)]
