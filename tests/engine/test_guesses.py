"""A whole engine whose small model guesses what the large one draws: the answers are the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engine import Completion, Engine, EngineConfig, SamplingParams, _core

PROMPTS = [
    f"{a}+{b}*{c}-{a}?\n\n" for a, b, c in ((47, 36, 37), (8, 71, 24), (5, 9, 3), (66, 7, 2))
]


def answers(
    monkeypatch: pytest.MonkeyPatch,
    guesses: int,
    policy: str,
    params: SamplingParams,
    **config: Any,
) -> list[Completion]:
    """With so many guesses a round, which no parameter asks for yet."""
    add = _core.Scheduler.add
    with monkeypatch.context() as patched:
        patched.setattr(
            _core.Scheduler,
            "add",
            lambda core, prompt, **more: add(core, prompt, **more, draft_tokens=guesses),
        )
        engine = Engine("tiny", config=EngineConfig(check_every=1, **config))
        return engine.generate(PROMPTS, params, policy=policy)


@pytest.mark.parametrize("config", [{}, {"plan_ahead": "both"}, {"max_sequences": 2}])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("policy", ["large", "steer", "random:0.5"])
def test_the_answers_are_the_same(
    monkeypatch: pytest.MonkeyPatch, policy: str, temperature: float, config: dict[str, Any]
) -> None:
    params = SamplingParams(max_tokens=48, temperature=temperature, seed=5)
    if temperature:
        params = replace(params, top_p=0.95, min_tokens=12)
    plain, guessed = (answers(monkeypatch, guesses, policy, params, **config) for guesses in (0, 4))
    for one, other in zip(plain, guessed, strict=True):
        assert other.text == one.text
        assert [(s.model, s.text, s.reason) for s in other.steps] == [
            (s.model, s.text, s.reason) for s in one.steps
        ]
        assert other.usage.count("large", "sampled") == one.usage.count("large", "sampled")
    drafted, rejected = (
        sum(done.usage.count("small", kind) for done in guessed) for kind in ("drafted", "rejected")
    )
    assert drafted > 0 and rejected > 0
