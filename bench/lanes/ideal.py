"""The least time of routed generation: sums of tick times along a schedule.

``walk`` lists the ticks of one request that has a card to itself. Their times, each measured alone
on the card, add up to the ideal at concurrency 1. Decodes count with the time that the engine
takes: where its lane plans ahead, the host's part of a tick is hidden and not counted. If tick
times do not depend on the context, the ideal is

    N_S T_S + sum over handoffs [T_L(n + 1) + (l - 1) T_L(1)] + the small model's re-reads

for N_S small tokens, n tokens to catch up and l tokens per large step. A re-read is the tick in
which the small model reads a boundary: if the small model goes on, the tick gives its next token
and costs only the rows that it has missed; if the large one takes over, the token is dropped and
the whole tick is extra cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from bench.lanes.schedule import Job
from bench.simulation.ticktimes import TickTimes
from engine._core import SMALL


@dataclass(frozen=True)
class WalkTick:
    """One tick: the rows that it computes and the keys that its last row sees."""

    model: int
    rows: int
    context: int


def walk(
    prompt: int, steps: Sequence[tuple[int, int]], reads: bool, most_rows: int
) -> Iterator[WalkTick]:
    """The ticks of a request alone, in order.

    Args:
        prompt: tokens of the prompt.
        steps: (model, tokens) of each step.
        reads: whether the small model reads every boundary.
        most_rows: limit of one tick; longer spans are cut.
    """
    length, computed = prompt, [0, 0]

    def catch_up(model: int) -> Iterator[WalkTick]:
        while computed[model] < length:
            rows = min(most_rows, length - computed[model])
            computed[model] += rows
            yield WalkTick(model, rows, computed[model])

    for model, tokens in steps:
        if reads:
            yield from catch_up(SMALL)
        for _ in range(tokens):
            yield from catch_up(model)
            length += 1


def walks(jobs: Iterable[Job], most_rows: int) -> list[WalkTick]:
    """The ticks of all jobs, each job alone."""
    return [t for job in jobs for t in walk(job.prompt, job.steps, job.reads, most_rows)]


def ideal_seconds(ticks: Iterable[WalkTick], times: TickTimes) -> float:
    """Seconds of one request after the other, with nothing hidden and nothing lost."""
    return sum(times.seconds(t.model, 1, t.context, t.rows) for t in ticks)


def bound_seconds(ticks: Iterable[WalkTick], times: TickTimes, concurrency: int) -> float:
    """The least seconds with ``concurrency`` requests at once: sum N_m T_m(C) / C + catch-up.

    Every tick shares the weights with those of all other requests; a tick of several rows
    additionally costs the time of its further rows, alone.
    """
    total = 0.0
    for t in ticks:
        total += times.seconds(t.model, concurrency, t.context, 1) / concurrency
        if t.rows > 1:
            alone, one = (times.seconds(t.model, 1, t.context, r) for r in (t.rows, 1))
            total += max(0.0, alone - one)
    return total
