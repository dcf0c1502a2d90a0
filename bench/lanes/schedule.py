"""Forced routing: which model writes which step, given the share of tokens and nothing else.

Dummy weights write no delimiters, so ``max_step_tokens`` ends each step, and the schedule says
which model writes the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

import numpy as np

from engine._core import LARGE, SMALL
from engine.config import ROLES
from engine.errors import SteerError
from engine.params import SamplingParams
from engine.routing.policies import Always
from engine.routing.policy import Boundary, Decision, Policy

_GOLDEN = 0.6180339887498949  # multiples of it spread evenly over [0, 1)
Models = tuple[int, ...]


def even_steps(count: int, share: float, phase: float) -> Models:
    """A model for each step, the large model's steps spread as evenly as possible.

    Of any ``count`` steps ``count * share`` are large, rounded up or down; ``phase`` in [0, 1)
    shifts their places.
    """
    return tuple(floor((k + 1) * share + phase) - floor(k * share + phase) for k in range(count))


def drawn_steps(count: int, share: float, mean: float, seed: int) -> Models:
    """The same share in runs of geometric length, ``mean`` steps on average, at random places.

    Exactly ``round(count * share)`` steps are large.
    """
    draw = np.random.default_rng(seed)
    left = round(count * share)
    runs: list[int] = []
    while sum(runs) < left:
        runs.append(min(int(draw.geometric(1 / mean)), left - sum(runs)))
    small = count - left
    kept = min(small, max(0, len(runs) - 1))  # so that runs stay apart as long as there are steps
    gaps = draw.multinomial(small - kept, np.full(len(runs) + 1, 1 / (len(runs) + 1)))
    gaps[1 : 1 + kept] += 1
    steps: list[int] = []
    for gap, run in zip(gaps.tolist(), [*runs, 0], strict=True):
        steps += [SMALL] * gap + [LARGE] * run
    return tuple(steps)


@dataclass(frozen=True)
class Forced:
    """A policy that follows a schedule, whatever the text says.

    models: the model that writes each step of ``step`` tokens.
    reads: the small model reads every boundary first, as for a policy with a signal.
    """

    models: Models
    step: int
    reads: bool = True
    name: str = "forced"

    def decide(self, boundary: Boundary) -> Decision:
        """Decide by the boundary's place in the answer."""
        index = (boundary.position - boundary.prompt_tokens) // self.step
        return Decision(ROLES[self.models[min(index, len(self.models) - 1)]], "scheduled")


@dataclass(frozen=True)
class Job:
    """One request of a forced run; tokens of its prompt, its answer and a step.

    reads: whether boundaries are read; where not, all ``models`` are the same.
    temperature: of draws; 0 takes the likeliest token.
    """

    prompt: int
    answer: int
    step: int
    models: Models
    reads: bool
    temperature: float = 0.0

    @property
    def policy(self) -> Policy:
        """The schedule as a policy; if no model reads, one model writes all."""
        if self.reads:
            return Forced(self.models, self.step)
        return Always(ROLES[self.models[0]])

    @property
    def params(self) -> SamplingParams:
        """Exactly the answer's length, in steps of the schedule's length."""
        return SamplingParams(
            max_tokens=self.answer,
            max_step_tokens=self.step,
            ignore_eos=True,
            temperature=self.temperature,
            seed=0,
        )

    @property
    def steps(self) -> list[tuple[int, int]]:
        """(model, tokens) of each step; the last one may be shorter."""
        ends = range(0, self.answer, self.step)
        return [
            (m, min(self.step, self.answer - at)) for m, at in zip(self.models, ends, strict=True)
        ]

    @property
    def large_tokens(self) -> int:
        """Tokens that the large model writes."""
        return sum(tokens for model, tokens in self.steps if model == LARGE)


@dataclass(frozen=True)
class Load:
    """The shape of each of ``requests``: tokens of prompt, answer and step.

    runs: 0 for evenly spread steps, else the mean number of steps of a run of large ones.
    temperature: of all draws.
    """

    requests: int
    prompt: int
    answer: int
    step: int
    runs: float = 0.0
    seed: int = 0
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if self.step > self.answer:
            raise SteerError(f"--step: {self.step} is longer than the answer of {self.answer}")

    def jobs(self, share: float) -> list[Job]:
        """The requests at one share of large tokens. At 1 the large model writes and none reads."""
        count = -(-self.answer // self.step)
        return [
            Job(
                self.prompt,
                self.answer,
                self.step,
                self._models(count, share, i),
                share < 1,
                self.temperature,
            )
            for i in range(self.requests)
        ]

    def _models(self, count: int, share: float, request: int) -> Models:
        if self.runs:
            return drawn_steps(count, share, self.runs, self.seed * 1_000_003 + request)
        return even_steps(count, share, ((request + self.seed) * _GOLDEN + 0.5) % 1)


def large_share(jobs: Sequence[Job]) -> float:
    """Share of the large model in all tokens."""
    return sum(job.large_tokens for job in jobs) / max(1, sum(job.answer for job in jobs))
