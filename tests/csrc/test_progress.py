"""Every admitted request finishes within the bound that docs/architecture.md states.

The worst that these tests know: the two models fight for the slabs, as each step is handed over and
neighbours stand on different models; the arena holds exactly one request.
"""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from engine._core import Scheduler

SMALL, LARGE = 0, 1
DECIDE = 0
TEXT, DELIMITER = 0, 1
PROMPT, ANSWER, BLOCK = 9, 20, 4
RUNNING, TICK_TOKENS = 8, 16  # so a prefill gets eight rows a tick at least


def build(policy: str, background: int, tight: bool, cache: bool) -> Scheduler:
    """Blocks of four tokens; one request needs eight slabs of the large model."""
    return Scheduler(
        slabs=8 if tight else 12,
        slots=(3, 1),
        block_tokens=BLOCK,
        max_context=PROMPT + ANSWER,
        max_sequences=RUNNING,
        max_tick_tokens=TICK_TOKENS,
        prefix_cache=cache,
        background=(background, background),
        lane_policy=policy,
        hold_ticks=4,
        tick_cost=(1.0, 6.0),
        delimiters=[b"|"],
        token_bytes=[b"a", b"|"],
    )


def bound(place: int, hold: int) -> int:
    """Rounds until the request at ``place`` of the order has finished, see the docs."""
    visit = -(-(PROMPT + ANSWER) // (TICK_TOKENS - RUNNING))  # ticks to read the whole text again
    return (place + 1) * 3 * (1 + hold) * 2 * (ANSWER + 1) * visit


def rounds_of(scheduler: Scheduler, seed: int, requests: int) -> dict[int, int]:
    """Hands every step to the other model; the round that each request ended in."""
    random = Random(seed)
    for i in range(requests):
        scheduler.add(
            [TEXT] * (PROMPT - i % 3),
            max_tokens=ANSWER,
            reader=random.choice((-1, SMALL, LARGE)),
            settle_at_once=random.random() < 0.5,
        )
    ended: dict[int, int] = {}
    turn = 0
    while len(ended) < requests:
        turn += 1
        for lane in random.sample((SMALL, LARGE), 2):
            for kind, id, _ in scheduler.take_events():
                if kind == DECIDE:
                    before = scheduler.sequence(id)
                    if before.awaits_route:
                        last = before.steps[-1][1] if before.steps else id % 2
                        scheduler.route(id, 1 - last)
                else:
                    ended[id] = turn
                    scheduler.forget(id)
            count = scheduler.plan(lane)
            if count:
                tokens = [DELIMITER if random.random() < 0.6 else TEXT for _ in range(count)]
                scheduler.commit(lane, np.array(tokens, np.int32))
            scheduler.check_integrity()
        assert turn < bound(requests, 4), "the bound of the last one is passed"
    return ended


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("tight", [False, True])
@pytest.mark.parametrize("background", [0, 1])
@pytest.mark.parametrize("policy", ["latency", "weighted", "throughput", "auto"])
def test_every_request_finishes_within_the_bound(
    policy: str, background: int, tight: bool, cache: bool
) -> None:
    hold = 0 if policy == "latency" else 6
    worst = 0.0
    for seed in range(6):
        scheduler = build(policy, background, tight, cache)
        ended = rounds_of(scheduler, seed, requests=10)
        for place, id in enumerate(sorted(ended)):
            worst = max(worst, ended[id] / bound(place, hold))
            assert ended[id] <= bound(place, hold), f"seed {seed}, request {id}"
        assert scheduler.pool.live(SMALL) == scheduler.pool.live(LARGE) == 0
    print(f"the worst came to {worst:.1%} of its bound")
