"""Everything that a request may ask for, with guesses and without: the answers are the same.

The number of guesses is 4, or what STEER_DRAFTS lists (``make test-all-drafts``).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import pytest

from engine import (
    AfterThinking,
    Boundary,
    Completion,
    Decision,
    Query,
    SamplingParams,
    Speculate,
    Threshold,
)
from engine._core import DRAFT_SOURCES
from engine.routing.names import make_policy
from engine.routing.policy import PolicyBase

from .guessed_requests import DRAWN, GREEDY, LONG, PROMPTS, engine_of, scores, what

DRAFTS = [int(n) for n in os.environ.get("STEER_DRAFTS", "4").split(",")]


@dataclass(frozen=True)
class Coin(PolicyBase):
    """By the place of a step: equal texts are routed alike, whatever the number of the request."""

    reads: bool = False
    name: str = "coin"

    def decide(self, boundary: Boundary) -> Decision:
        """The same for the same place."""
        return Decision(("small", "large")[hash((boundary.step, boundary.position)) % 2], "coin")


COIN = Coin()

# Everything a request may ask for: parameters, policy, settings of the engine.
CASES: dict[str, tuple[SamplingParams, Any, dict[str, Any]]] = {
    "greedy": (GREEDY, "large", {}),
    "drawn": (DRAWN, "large", {}),
    "filters": (replace(DRAWN, top_k=12, top_p=0.95, min_p=0.02), "large", {}),
    "hot": (replace(DRAWN, temperature=2.5, ignore_eos=True), "large", {}),
    "steer": (GREEDY, "steer", {}),
    "steer, drawn": (DRAWN, "steer", {}),
    "random": (replace(DRAWN, n=3), COIN, {}),
    "probe": (GREEDY, "threshold:max_prob:0.9@probe:8:least", {}),
    "probe, drawn": (DRAWN, "threshold:max_prob:0.9@probe:8", {}),
    "step": (GREEDY, "previous:entropy:0.05@step:least", {}),
    "cascade": (replace(DRAWN, temperature=0.7), "cascade:max_prob:0.99", {}),
    "query": (GREEDY, Query(COIN), {}),
    "judge": (GREEDY, "judge:-3", {}),
    "judge, drawn": (DRAWN, "judge:-2", {}),
    "audit": (GREEDY, "audit:-2", {}),
    "rollback": (replace(DRAWN, audit="rollback:min:-2"), COIN, {}),
    "scored": (replace(GREEDY, audit="score"), "steer", {}),
    "stop": (replace(LONG, stop=("7",), min_tokens=9), "large", {}),
    "stops": (replace(DRAWN, stop=("\n\n3", "24"), ignore_eos=True), "steer", {}),
    "stop ids": (replace(LONG, stop_token_ids=(7, 9), min_tokens=14), "large", {}),
    "short steps": (replace(LONG, max_step_tokens=3), COIN, {}),
    "thinking": (
        replace(LONG, max_think_tokens=11, think_end="\n\n9"),
        AfterThinking(Threshold("max_prob", 0.9), make_policy("large")),
        {},
    ),
    "thinks on": (replace(LONG, max_think_tokens=23), "large", {}),
    "repetition": (replace(LONG, max_repeats=3, logit_bias={5: 60.0}), "large", {}),
    "penalties": (
        replace(LONG, repetition_penalty=1.4, presence_penalty=0.6, frequency_penalty=0.8),
        "large",
        {},
    ),
    "penalties, drawn": (
        replace(DRAWN, repetition_penalty=1.2, frequency_penalty=1.5, ignore_eos=True),
        "steer",
        {},
    ),
    "biases": (replace(DRAWN, logit_bias={5: 4.0, 9: -90.0}, min_tokens=20), "steer", {}),
    "logprobs": (replace(DRAWN, logprobs=3, logit_bias={5: 3.0}), COIN, {}),
    "signals": (replace(GREEDY, token_signals=True, logprobs=0), "steer", {}),
    "samples": (replace(DRAWN, n=4, logprobs=1), "large", {}),
    "large share": (replace(GREEDY, max_large_share=0.3), "threshold:max_prob:0.999", {}),
    "one at a time": (DRAWN, "steer", {"max_sequences": 1}),
    "both ahead": (DRAWN, "steer", {"plan_ahead": "both"}),
    "small ahead": (DRAWN, "large", {"plan_ahead": "small"}),
    "blocks of two": (DRAWN, COIN, {"block_tokens": 2}),
    "tight": (LONG, COIN, {"arena_tokens": 288, "eager_admission": True}),
    "host memory": (
        replace(LONG, n=3),
        COIN,
        {"arena_tokens": 288, "host_kv_tokens": 512, "eager_admission": True},
    ),
    "no prefix cache": (replace(GREEDY, n=2), "steer", {"prefix_cache": False}),
    "few rows": (GREEDY, "large", {"max_tick_tokens": 9, "max_sequences": 8}),
    "reads ahead": (GREEDY, COIN, {"eager_backlog": 4, "read_along": 4}),
    "gathered": (DRAWN, "steer", {"lane_policy": "throughput"}),
    "weighted": (DRAWN, "steer", {"lane_policy": "weighted"}),
}


def answers(policy: Any, params: SamplingParams, settings: dict[str, Any]) -> list[Completion]:
    """To the prompts, each twice: the second finds the first one's KV."""
    return engine_of(tuple(settings.items())).generate(PROMPTS + PROMPTS[:2], params, policy)


@pytest.mark.parametrize("drafts", DRAFTS)
@pytest.mark.parametrize("case", CASES)
def test_answers_are_those_without_guesses(case: str, drafts: int) -> None:
    params, policy, settings = CASES[case]
    plain = answers(policy, params, settings)
    made = engine_of(()).policy(policy)
    for source in DRAFT_SOURCES:
        guessed = answers(Speculate(made, drafts, source), params, settings)
        for one, other in zip(plain, guessed, strict=True):
            assert what(other) == what(one)
            assert scores(other) == pytest.approx(scores(one), rel=1e-4, abs=1e-6)
            assert other.usage.count("large", "sampled") == one.usage.count("large", "sampled")
        if drafts:
            check_counts(guessed, drafts)


def check_counts(guessed: list[Completion], drafts: int) -> None:
    """What guessing says of itself agrees with the rows, and with the text."""
    for done in guessed:
        usage, counts = done.usage, done.usage.speculated
        assert counts.accepted <= counts.compared
        assert counts.accepted == sum(counts.accepted_at)
        assert len(counts.accepted_at) <= drafts
        assert counts.tokens <= counts.passes + counts.accepted
        made = usage.count("small", "drafted") + usage.count("small", "rejected")
        assert made >= counts.drafted >= usage.count("small", "drafted")
        large = usage.count("large", "sampled")
        assert counts.tokens <= large + usage.count("large", "discarded")
        # A boundary that the large model reads gives it a step's first token without such a pass.
        assert large <= counts.tokens + len(done.steps)
    if any(done.usage.count("large", "sampled") > 40 for done in guessed):
        assert sum(done.usage.speculated.rounds for done in guessed) > 0
