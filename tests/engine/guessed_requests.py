"""Requests whose large steps are guessed, and engines for them."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

from engine import Completion, Engine, EngineConfig, SamplingParams

PROMPTS = [
    f"{a}+{b}*{c}-{a}?\n\n" for a, b, c in ((47, 36, 37), (8, 71, 24), (5, 9, 3), (66, 7, 2))
]
GREEDY = SamplingParams(max_tokens=48)
DRAWN = SamplingParams(max_tokens=48, temperature=1.0, seed=5)
LONG = SamplingParams(max_tokens=64, ignore_eos=True)


@lru_cache(8)
def engine_of(settings: tuple[tuple[str, Any], ...]) -> Engine:
    """One for each group of settings."""
    return Engine("tiny", config=EngineConfig(check_every=1, **dict(settings)))


def what(done: Completion) -> Any:
    """All of an answer but its number, its costs and its audit's scores."""
    steps = [replace(step, audit=()) for step in done.steps]
    retracted = [replace(step, score=0.0) for step in done.retracted]
    parts = (done.text, done.token_ids, done.finish_reason, steps, done.sample, retracted)
    return *parts, done.logprobs, done.token_signals, done.error


def scores(done: Completion) -> list[float]:
    """What an audit found. Rows may be read in other spans than without guesses, where the last
    bits of a sum differ."""
    found = [score for step in done.steps for pair in step.audit for score in pair]
    return found + [step.score for step in done.retracted]
