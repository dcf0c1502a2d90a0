"""Recorded ticks, spans among decodes included: few sizes, and no bit that another way lacks."""

from __future__ import annotations

import random
from itertools import cycle

import pytest

from engine import SamplingParams
from engine.config import LANE_POLICIES, ROLES
from engine.device.graphs import Graphs
from engine.execution.inputs import Extent, TickLimits
from engine.routing.policies import Call
from engine.routing.windows import Window
from tests.engine.test_lanes import schedule

ASKED = [
    {},
    {"temperature": 0.9, "top_p": 0.8, "logprobs": 2},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.2},
    {"temperature": 1.1, "min_tokens": 6, "logit_bias": {4: 1.5}, "logprobs": 0},
]
WAYS = {
    **{name: {"lane_policy": name} for name in LANE_POLICIES},
    "ahead": {"plan_ahead": "both", "read_along": 1, "eager_backlog": 3},
    "tight": {
        "arena_tokens": 192,
        "max_context": 96,
        "eager_admission": True,
        "max_sequences": 16,
        "max_tick_tokens": 24,
        "graph_rows": 24,
    },
    "uneven": {"max_sequences": 11, "max_tick_tokens": 90, "graph_rows": 40},
}


def written(engine, batch, recorded=True, asked=ASKED):
    """Tokens and log-probabilities of requests that arrive a few at a time."""
    if not recorded:
        for lane in engine.lanes:
            lane.runner.graphs = Graphs(None)
    windows = cycle([Window(), Window("probe", 3)])
    waiting, ids, done = list(enumerate(batch)), [], {}
    while len(done) < len(batch):
        while waiting and len(ids) - len(done) < 9:
            i, prompt = waiting.pop(0)
            params = SamplingParams(max_tokens=20, seed=i, **asked[i % len(asked)])
            policy = Call(lambda b: schedule(b.position), window=next(windows))
            ids.append(engine.submit(prompt, params, policy))
        done |= {c.request_id: c for c in engine.step()}
    return [(done[i].token_ids, done[i].logprobs, done[i].finish_reason) for i in ids]


@pytest.mark.parametrize(
    ("way", "cpu_kernels"), [*((way, True) for way in WAYS), ("auto", False), ("uneven", False)]
)
def test_spans_and_decodes_are_replayed_to_the_bit(pair, delimiters, prompts, way, cpu_kernels):
    """Prompts, catch-ups and re-reads of ragged lengths among decodes, in ticks of every kind."""
    config = {
        "delimiters": delimiters,
        "block_tokens": 4,
        "check_every": 1,
        "graphs": "on",
        "cpu_kernels": cpu_kernels,
        **WAYS[way],
    }
    batch = prompts(10, seed=31, longest=30)
    engine = pair.engine(**config)
    found = written(engine, batch)
    assert found == written(pair.engine(**config), batch, recorded=False)
    biggest = engine.config.max_tick_tokens <= engine.config.graph_rows
    for counts in (engine.graph_counts[role] for role in ROLES):
        assert counts.captures == counts.misses and counts.replays > counts.captures
        assert counts.eager >= counts.misses
        # Where no tick is too big, none runs without a graph but the first of each size.
        assert counts.eager == counts.misses or not biggest
    if cpu_kernels:  # there a row has the same bits in any batch
        assert found == written(pair.engine(**config | {"graphs": "off"}), batch)


def test_how_much_is_recorded_can_be_chosen(pair, delimiters, prompts):
    batch, counts = prompts(10, seed=32), {}
    for rows in (0, 256):
        engine = pair.engine(
            delimiters=delimiters,
            graphs="on",
            graph_rows=rows,
            max_sequences=32,
            max_tick_tokens=256,
        )
        written(engine, batch)
        counts[rows] = [engine.graph_counts[role] for role in ROLES]
    for decodes, all_ in zip(counts[0], counts[256], strict=True):
        assert decodes.eager - decodes.misses > 10 and all_.eager == all_.misses
        assert all_.replays > decodes.replays + 5


def test_what_an_audit_scores_is_not_recorded(pair, delimiters, prompts):
    """Single rows that it reads included: what they score is what it is without graphs."""
    batch, params = prompts(6, seed=33), SamplingParams(max_tokens=40, audit="score")
    policy = Call(lambda b: schedule(b.position))
    read = []
    for graphs in ("off", "on"):
        engine = pair.engine(delimiters=delimiters, graphs=graphs, max_tick_tokens=257)
        done = engine.generate(batch, params, policy)
        read.append([(c.token_ids, [step.audit for step in c.steps]) for c in done])
    assert read[0] == read[1] and any(audit for _, steps in read[0] for audit in steps)
    counts = engine.graph_counts
    assert counts["large"].eager > counts["large"].misses and counts["small"].replays > 20


LIMITS = TickLimits(sequences=256, rows=2048, width=8, filled=256)


def test_there_are_few_sizes():
    """All ticks of up to 256 rows share 30 of them, which is what a lane records of a kind."""
    sizes = {Extent.filled(n, rows, LIMITS) for rows in range(1, 257) for n in range(1, rows + 1)}
    assert len([s for s in sizes if s.spans]) == 21 and len(sizes) == 30
    assert Extent.filled(3, 257, LIMITS) is None
    assert Extent.filled(2, 3, TickLimits(4, 9, 1)) is None


@pytest.mark.parametrize("limits", [LIMITS, TickLimits(11, 90, 4, 40), TickLimits(16, 24, 4, 24)])
def test_what_is_filled_up_holds_the_tick(limits):
    draw = random.Random(1)
    for _ in range(2000):
        n = draw.randint(1, limits.sequences)
        rows = min(n + draw.choice([0, 1, 3, 20, 200]), limits.rows)
        size = Extent.filled(n, rows, limits)
        if size is None:
            assert rows > limits.filled
            continue
        assert n <= size.sequences <= min(limits.sequences, max(size.rows, n))
        assert rows <= size.rows < max(2 * rows, 17) and size.sampled == size.sequences
        assert size.spans == (rows > n)


@pytest.mark.parametrize("drawn", [5, 100, 256])
def test_guesses_are_verified_in_sizes_of_their_own(drawn):
    """Of all rows, and of no more than memory for logits is planned for."""
    limits = TickLimits(sequences=256, rows=2048, width=8, filled=256, drawn=drawn)
    for n in range(1, drawn):
        for rows in range(n + 1, drawn + 1):
            size = Extent.filled(n, rows, limits, all_rows=True)
            assert size.all_rows and rows <= size.rows == size.sampled <= drawn
            assert n <= size.sequences <= size.rows
    assert Extent.filled(1, drawn + 1, limits, all_rows=True) is None
