"""Runs forced requests on an engine: so many at once, the end of one starts the next."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.lanes.device import Device
from bench.lanes.schedule import Job
from engine import Completion, Engine
from engine.accounting.ledger import Usage
from engine.config import ROLES


@dataclass(frozen=True)
class Ran:
    """What a run took and did.

    seconds: wall clock, from the first request to the last token.
    tokens: generated, of both models.
    large_tokens: of them, by the large model.
    ticks: of each lane.
    """

    requests: int
    seconds: float
    tokens: int
    large_tokens: int
    ticks: tuple[int, int]
    usage: Usage


def run_jobs(
    engine: Engine, device: Device, jobs: Sequence[Job], concurrency: int, seed: int = 0
) -> Ran:
    """Run all jobs. ``seed``: of the prompts; those of two seeds have nothing in common."""
    draw = np.random.default_rng(seed)
    prompts = [draw.integers(0, engine.tokenizer.size, job.prompt).tolist() for job in jobs]
    waiting = list(zip(jobs, prompts, strict=True))[::-1]
    done: list[Completion] = []

    def start() -> None:
        job, prompt = waiting.pop()
        engine.submit(prompt, job.params, job.policy)

    before = _ticks(engine)
    device.synchronize()
    began = time.perf_counter()
    for _ in range(min(concurrency, len(jobs))):
        start()
    while len(done) < len(jobs):
        for completion in engine.step():
            done.append(completion)
            if waiting:
                start()
    device.synchronize()
    seconds = time.perf_counter() - began
    small, large = (b - a for a, b in zip(before, _ticks(engine), strict=True))
    return Ran(
        requests=len(done),
        seconds=seconds,
        tokens=sum(len(completion.token_ids) for completion in done),
        large_tokens=sum(
            len(step.token_ids) for c in done for step in c.steps if step.model == ROLES[1]
        ),
        ticks=(small, large),
        usage=sum((completion.usage for completion in done), Usage()),
    )


def _ticks(engine: Engine) -> list[int]:
    found = engine.scheduler.counters()["ticks"]
    assert isinstance(found, list)
    return found
