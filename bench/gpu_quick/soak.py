"""Random requests, aborts and handoffs on one engine: records must agree, memory must stay flat."""

from __future__ import annotations

import gc
import math
import random
import resource
import time
from dataclasses import dataclass, field

import torch

from engine import Engine, SamplingParams
from engine._core import LARGE, SMALL
from engine.routing.policies import Call


def memory(device: str) -> tuple[int, ...]:
    """Bytes in use; on a GPU also those kept for later use, including those of graphs."""
    gc.collect()
    if device == "cuda":
        return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    return (1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,)


class Calm:
    """Says when memory can be compared: half of the time is over, and no graph has been recorded
    for a number of ticks."""

    def __init__(self, engine: Engine, half: float, ticks: int) -> None:
        """``half``: the moment of half time on the clock of ``time.monotonic``."""
        self._engine, self._half, self._least = engine, half, ticks
        self._captures = self._ticks = 0

    def __call__(self) -> bool:
        """Whether memory can be compared; call it once per tick."""
        captures = sum(counts.captures for counts in self._engine.graph_counts.values())
        self._ticks = self._ticks + 1 if captures == self._captures else 0
        self._captures = captures
        return self._ticks > self._least and time.monotonic() > self._half


def random_params(rng: random.Random, step: int) -> SamplingParams:
    """Parameters, greedy and drawn, with and without penalties and log-probabilities.

    ``step``: tokens after which some requests reach a boundary; 0 leaves that to delimiters.
    """
    return SamplingParams(
        max_tokens=rng.randint(1, 40),
        temperature=rng.choice([0.0, 0.0, 0.8, 1.5]),
        top_p=rng.choice([1.0, 0.8]),
        seed=rng.randrange(2**32),
        repetition_penalty=rng.choice([1.0, 1.0, 1.2]),
        logprobs=rng.choice([None, None, 3]),
        max_step_tokens=rng.choice([0, step]),
    )


@dataclass
class Soak:
    """A soak run.

    engine: has graphs, and an arena that is too small for all requests at once.
    device: "cpu" or "cuda".
    ids: prompts are made of token ids from 2 to below this.
    seconds: how long requests are submitted; longer while graphs are still being recorded.
    most: seconds after which the run ends in any case, with or without a comparison of memory.
    calm: ticks without a recording after which memory is compared.
    step: see ``random_params``.
    at_once: requests that are queued or running.
    least: requests that must have reached their length.
    ended: requests by the reason that ended them.
    """

    engine: Engine
    device: str
    ids: int
    seconds: float
    calm: int = 200
    step: int = 0
    at_once: int = 40
    least: int = 20
    most: float = math.inf
    compared: bool = False  # whether memory was compared
    ended: dict[str, int] = field(default_factory=dict)

    def run(self) -> list[str]:
        """The faults in words; empty if there are none."""
        rng, begin = random.Random(0), time.monotonic()
        policy = Call(lambda boundary: rng.choice(["small", "small", "large"]))
        alive: set[int] = set()
        baseline: tuple[int, ...] | None = None
        calm, end = Calm(self.engine, begin + self.seconds / 2, self.calm), begin + self.seconds
        while alive or self._goes_on(begin, end, baseline):
            while len(alive) < self.at_once and self._goes_on(begin, end, baseline):
                prompt = [rng.randrange(2, self.ids) for _ in range(rng.randint(1, 50))]
                params = random_params(rng, self.step)
                alive.add(self.engine.submit(prompt, params, policy))
            if rng.random() < 0.1 and alive:
                self.engine.abort(rng.choice(sorted(alive)))
            for done in self.engine.step():
                alive.discard(done.request_id)
                self.ended[done.finish_reason] = self.ended.get(done.finish_reason, 0) + 1
            if calm() and baseline is None:
                baseline = memory(self.device)
                end = max(end, time.monotonic() + self.seconds / 2)
        self.compared = baseline is not None
        return [*self._books(), *(_grown(memory(self.device), baseline) if baseline else [])]

    def _goes_on(self, begin: float, end: float, baseline: tuple[int, ...] | None) -> bool:
        """Whether there are more requests: until the end, and until memory can be compared."""
        now = time.monotonic()
        return now < begin + self.most and (now < end or baseline is None)

    def _books(self) -> list[str]:
        """Faults at the end: all requests must have ended properly, and nothing of them is left."""
        scheduler, counts = self.engine.scheduler, self.engine.graph_counts
        scheduler.check_integrity()
        live = [scheduler.pool.live(model) for model in (SMALL, LARGE)]
        claims = {
            f"blocks of no sequence are held: {live}": live == [0, 0],
            "no request was aborted": self.ended.get("abort", 0) > 0,
            f"{self.least} requests or fewer reached their length": (
                self.ended.get("length", 0) > self.least
            ),
            f"requests ended with an error: {self.ended}": "error" not in self.ended,
            "nothing was preempted": _number(scheduler.counters()["preemptions"]) > 0,
            f"graphs were recorded more often than replayed: {counts}": all(
                c.replays > c.captures > 0 for c in counts.values()
            ),
        }
        return [claim for claim, holds in claims.items() if not holds]


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value


def _grown(now: tuple[int, ...], then: tuple[int, ...]) -> list[str]:
    in_use, *kept = zip(now, then, strict=True)
    found = []
    if in_use[0] > 1.02 * in_use[1] + 2**24:
        found.append(f"memory in use grew from {in_use[1]} to {in_use[0]} bytes")
    for after, before in kept:  # the allocator rounds up, and a rare size may still come up
        if after > 1.05 * before + 2**26:
            found.append(f"memory that is kept grew from {before} to {after} bytes")
    return found
