"""Whether an engine agrees with transformers where both follow the same text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from bench.gpu_quick.families import TOKENS, Oracle
from engine import Completion, Engine, EngineConfig, SamplingParams
from engine._core import LARGE, SMALL
from engine.config import ROLES
from engine.routing.policies import Call
from engine.routing.policy import Boundary
from kernels.ops import BackendChoice

HEATS, LOGPROBS = (0.0, 0.0, 1.0), (None, 5, 5)  # of requests, in turns
DRAWN = 2  # the request whose tokens are drawn
STEP = 5  # tokens, at most
NEAR = 2e-4  # nats, in fp32: sums in another order
_ALLOWED = 3.0  # times the error of transformers' own bfloat16
_LEAST = 0.02  # nats, in bf16


class Wrong(NamedTuple):
    """The first token on which the engine disagrees."""

    request: int
    position: int
    model: str
    token: int
    got: float
    expected: float
    ended: str = ""  # the reason, of a request that ended before its length

    def __str__(self) -> str:
        if self.ended:
            return f"request {self.request} ended at position {self.position}: {self.ended}"
        return (
            f"request {self.request}, position {self.position}, {self.model} model, token "
            f"{self.token}: log-probability {self.got:.5f}, expected {self.expected:.5f}"
        )


# One tick at a time; see ``write_steadily``.
STEADY: dict[str, Any] = {"overlap": False, "plan_ahead": "off"}


@dataclass(frozen=True)
class Scale:
    """Size of a comparison: requests, and tokens that each writes."""

    requests: int = 9
    tokens: int = 24


def scale_of(quick: bool) -> Scale:
    """The usual one, or the smallest that has every kind of request."""
    return Scale(3, 6) if quick else Scale()


def prompts(scale: Scale) -> list[list[int]]:
    """Prompts of random characters, from one token to more than a page."""
    draw = torch.Generator("cpu").manual_seed(7)
    lengths = [1 + (17 * i) % 40 for i in range(scale.requests)]
    return [torch.randint(2, len(TOKENS), (n,), generator=draw).tolist() for n in lengths]


def build(
    oracle: Oracle, dtype: str, backends: BackendChoice | None = None, **settings: Any
) -> Engine:
    """An engine on the card over an oracle's folders; ``backends`` as of ``Engine``."""
    small, large = oracle.folders
    config = {
        "block_tokens": 16,
        "arena_tokens": 2048,
        "max_context": 128,
        "max_sequences": 16,
        "max_tick_tokens": 64,
        "graphs": "on",
        "plan_ahead": "both",
        "check_every": 1,
    }
    return Engine(
        "custom",
        small=small,
        large=large,
        dtype=dtype,
        device="cuda",
        config=EngineConfig(**{**config, **settings}),
        backends=backends,
    )


def forced(boundary: Boundary) -> str:
    """The models take turns, step by step: handoffs in both directions."""
    return ROLES[boundary.step % 2]


def write(engine: Engine, scale: Scale) -> list[Completion]:
    """Requests together: the likeliest tokens, and drawn ones, with log-probabilities."""
    return _finish(engine, [_submit(engine, scale, i, Call(forced)) for i in range(scale.requests)])


def write_steadily(engine: Engine, scale: Scale) -> list[Completion]:
    """The same requests one after the other, then all at once on either model.

    With the settings ``STEADY`` the engine's batches are then the same in every run, independent of
    timing, so that a vendor's product of many rows gives the same bits.
    """
    numbers, done = range(scale.requests), list[Completion]()
    for index in numbers:
        done += _finish(engine, [_submit(engine, scale, index, Call(forced))])
    for role in ROLES:
        done += _finish(engine, [_submit(engine, scale, index, role) for index in numbers])
    return done


def _submit(engine: Engine, scale: Scale, index: int, policy: Call | str) -> int:
    params = SamplingParams(
        max_tokens=scale.tokens,
        max_step_tokens=STEP,
        seed=index,
        ignore_eos=True,
        temperature=HEATS[index % len(HEATS)],
        logprobs=LOGPROBS[index % len(HEATS)],
    )
    return engine.submit(prompts(scale)[index], params, policy)


def _finish(engine: Engine, numbers: Sequence[int]) -> list[Completion]:
    done: dict[int, Completion] = {}
    while len(done) < len(numbers):
        done |= {completion.request_id: completion for completion in engine.step()}
    return [done[number] for number in numbers]


def first_wrong(done: Sequence[Completion], oracle: Oracle, dtype: str) -> Wrong | None:
    """The first token whose value is too far from that of transformers on the same text."""
    for number, completion in enumerate(done):
        text = [*completion.prompt_token_ids, *completion.token_ids]
        if completion.finish_reason != "length":  # as where logits are NaN
            nothing, reason = math.nan, completion.finish_reason
            return Wrong(number, len(text), "either", -1, nothing, nothing, reason)
        exact = [oracle.logprobs(model, text, torch.float64) for model in (SMALL, LARGE)]
        near = NEAR
        if dtype == "bfloat16":
            theirs = (oracle.logprobs(model, text, torch.bfloat16) for model in (SMALL, LARGE))
            pairs = zip(theirs, exact, strict=True)
            near = _LEAST + _ALLOWED * max(float((a - b).abs().max()) for a, b in pairs)
        found = _wrong_of(number, completion, text, exact, near)
        if found is not None:
            return found
    return None


def _wrong_of(
    number: int, done: Completion, text: list[int], exact: Sequence[torch.Tensor], near: float
) -> Wrong | None:
    for step in done.steps:
        says = exact[ROLES.index(step.model)]
        for position in range(step.position, step.position + len(step.token_ids)):
            row = says[position - 1]
            for token, got, expected, slack in _compared(number, done, position, row, text):
                if not abs(got - expected) <= slack * near:
                    return Wrong(number, position, step.model, token, got, expected)
    return None


def _compared(
    number: int, done: Completion, position: int, row: torch.Tensor, text: list[int]
) -> Iterator[tuple[int, float, float, float]]:
    """Tokens with the engine's value, the expected one, and the factor of the allowed error.

    For the likeliest tokens also that none is likelier: there two values are rounded.
    """
    token, expected = text[position], row.tolist()
    if number % len(HEATS) != DRAWN:
        yield token, expected[token], max(expected), 2.0
    if done.logprobs is None:
        return
    said = done.logprobs[position - len(done.prompt_token_ids)]
    for other, value in ((token, said.logprob), *said.top):
        yield other, math.nan if value is None else value, expected[other], 1.0


def check_schedule(done: Sequence[Completion]) -> None:
    """AssertionError unless both models wrote, in turns, as the schedule says."""
    for completion in done:
        told = [step.model for step in completion.steps]
        assert told == [ROLES[i % 2] for i in range(len(told))] and len(told) > 1, told


def same_bits(ours: Sequence[Completion], theirs: Sequence[Completion]) -> Wrong | None:
    """The first token, or log-probability, in whose bits two runs differ."""
    for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        first = len(one.prompt_token_ids)
        if len(one.token_ids) != len(other.token_ids):
            reasons = f"{one.finish_reason}, the other run's: {other.finish_reason}"
            return Wrong(number, first + len(one.token_ids), "either", -1, 0.0, 0.0, reasons)
        nothing = [None] * len(one.token_ids)
        columns = zip(
            one.token_ids,
            other.token_ids,
            one.logprobs or nothing,
            other.logprobs or nothing,
            strict=True,
        )
        for place, (a, b, said, told) in enumerate(columns):
            if (a, said) != (b, told):
                got, expected = (x.logprob if x else None for x in (said, told))
                return Wrong(
                    number,
                    first + place,
                    "either",
                    a,
                    math.nan if got is None else got,
                    math.nan if expected is None else expected,
                )
    return None
