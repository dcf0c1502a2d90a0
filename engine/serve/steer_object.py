"""``steer``: who wrote which step, why, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from engine.engine import Engine
from engine.request import Completion, Step
from engine.serve.usage import flops_of, tokens_by_author


def step_object(step: Step) -> dict[str, Any]:
    """A step as JSON; ``tokens`` only if it is finished."""
    made = {
        "index": step.index,
        "author": step.model,
        "reason": step.reason,
        "kind": step.kind,
        "posterior": step.posterior,
        "signals": None if step.signals is None else asdict(step.signals),
        "position": step.position,
        "tried": step.tried,
        "catch_up": step.catch_up,
    }
    return made | ({"tokens": len(step.token_ids)} if step.token_ids else {})


def choice_summary(completion: Completion) -> dict[str, Any]:
    """One answer's share of the large model, and its tokens by author."""
    return {
        "tokens": tokens_by_author([completion]),
        "large_token_share": completion.large_token_share,
    }


def steer_object(engine: Engine, policy: str, done: Sequence[Completion]) -> dict[str, Any]:
    """The whole of it for a finished request; ``done``: its choices in order."""
    return {
        "policy": policy,
        "choices": [
            {
                "index": index,
                "steps": [step_object(step) for step in completion.steps],
                "large_token_share": completion.large_token_share,
            }
            for index, completion in enumerate(done)
        ],
        "tokens": tokens_by_author(done),
        "flops": flops_of(engine, done),
        "times": times_of(done),
    }


def times_of(done: Sequence[Completion]) -> dict[str, float | None]:
    """Seconds from the first arrival: until a model began, the first token, and the end."""
    times = [each.times for each in done if each.times is not None]
    queued = min((each.queued for each in times), default=0.0)
    seconds: dict[str, float | None] = {}
    ends = (("started", min), ("first_token", min), ("ended", max))
    for name, choose in ends:
        known = [at for each in times if (at := getattr(each, name)) is not None]
        seconds[name] = choose(known) - queued if known else None
    return seconds
