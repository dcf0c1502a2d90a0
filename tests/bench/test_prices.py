"""Time and money from counts: worked out by hand, beside the simulator, beside the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from bench.evaluate import evaluate, task_tests, ticks_of
from bench.prices.card_time import CardTime, readers, tick_size
from bench.prices.money import Tariff, small_price
from bench.simulation.cards import CARDS, KV_BYTES
from bench.simulation.run import Simulation
from bench.simulation.setting import BLOCK_TOKENS, Setting
from bench.simulation.ticktimes import Roofline
from bench.simulation.workload import Means, Workload
from engine import Engine, EngineConfig, Usage
from engine._core import LARGE, SMALL, RowKind
from engine.accounting.ledger import span_counts
from engine.accounting.passes import Passes
from engine.accounting.speculated import Speculated
from engine.config import EngineConfig as Config
from engine.device.kv_arena import ArenaGeometry
from tests.bench.simulations import SHAPES, closed

# 1.5B and 32B, from their published shapes.
WEIGHTS = 2 * 1_543_714_304, 2 * (32_763_876_352 - 152_064 * 5120)  # bytes without the embedding
KV = 2 * 28 * 2 * 128 * 2, 2 * 64 * 8 * 128 * 2  # bytes of a token
BANDWIDTH, PEAK = 3.35e12, 989.4e12
IDEAL = Roofline(SHAPES, CARDS["h100"], "bf16", efficiency=1, overhead=0)
REAL = Roofline(SHAPES, CARDS["h100"], "bf16", efficiency=0.7, overhead=200e-6)


def routed(small: int, large: int, prompt: int = 1) -> Usage:
    """The small model writes, then the large one reads it all and writes on."""
    usage, middle = Usage(), prompt + small - 1
    usage.rows[SMALL, RowKind.prompt] = span_counts(0, prompt - 1)
    usage.rows[SMALL, RowKind.sampled] = span_counts(prompt - 1, middle)
    usage.rows[LARGE, RowKind.prompt] = span_counts(0, prompt - 1)
    usage.rows[LARGE, RowKind.catchup] = span_counts(prompt - 1, middle)
    usage.rows[LARGE, RowKind.sampled] = span_counts(middle, middle + large)
    usage.entries[SMALL] = span_counts(0, prompt - 1)
    usage.entries[LARGE] = span_counts(0, middle)
    return usage


def guessed() -> Usage:
    """Two passes of the large model: 5 tokens stood, 3 guesses did not; a prompt of 11."""
    usage = Usage(speculated=Speculated(passes=2, tokens=5, rounds=2))
    for model, kind, count in (
        (SMALL, RowKind.prompt, 10),
        (SMALL, RowKind.drafted, 4),
        (SMALL, RowKind.rejected, 2),
        (LARGE, RowKind.prompt, 10),
        (LARGE, RowKind.sampled, 5),
        (LARGE, RowKind.discarded, 3),
    ):
        usage.rows[model, kind] = count, 12 * count
    usage.entries[LARGE] = span_counts(0, 10)
    return usage


def test_passes_by_hand():
    """A pass with guesses counts once; elsewhere each drawn row is one."""
    assert Passes.of(routed(4, 3, 11), "small") == Passes(4, 4, 50, 10, 1, 10, 100)
    assert Passes.of(routed(4, 3, 11), "large") == Passes(3, 3, 48, 14, 1, 14, 196)
    assert Passes.of(guessed(), "large").passes == 2
    assert Passes.of(guessed(), "small").passes == 6
    assert Passes.of(Usage(), "large") == Passes()


def test_entries_from_their_squares():
    """Exact if all entries come after as many tokens; never more than the passes."""
    usage = Usage()
    usage.rows[LARGE, RowKind.sampled] = 9, 9
    usage.entries[LARGE] = 3 * np.array(span_counts(0, 20))
    assert Passes.of(usage, "large").entries == pytest.approx(3)
    usage.rows[LARGE, RowKind.sampled] = 2, 2
    assert Passes.of(usage, "large").entries == 2


@pytest.mark.parametrize("policy", ["threshold:max_prob:0.9", "judge:-5", "cascade:max_prob:0.6"])
def test_passes_are_the_engines_ticks(policy: str):
    """One request at a time each tick is one pass."""
    engine = Engine("tiny", config=EngineConfig(max_sequences=1, prefix_cache=False))
    done = evaluate(engine, engine.policy(policy), task_tests("test", 5))
    passes = [sum(Passes.of(u, role).passes for u in done.usages) for role in ("small", "large")]
    assert passes == ticks_of(engine)


@pytest.mark.parametrize(("policy", "more"), [("speculate", 1), ("verify", 0)])
def test_passes_that_verify_are_the_engines_ticks(policy: str, more: int):
    """Where the small model guesses the large one reads a prompt in a pass of its own: not counted,
    as :class:`Passes` says."""
    engine = Engine("tiny", config=EngineConfig(max_sequences=1, prefix_cache=False))
    done = evaluate(engine, engine.policy(policy), task_tests("test", 5))
    passes = [sum(Passes.of(u, role).passes for u in done.usages) for role in ("small", "large")]
    assert [passes[SMALL], passes[LARGE] + 5 * more] == ticks_of(engine)


def test_a_token_alone_by_hand():
    """Weights once, the keys and values of one token read and written."""
    seconds = CardTime(IDEAL, 1).total([Usage.alone("large", 1, 1)])
    assert seconds == pytest.approx((WEIGHTS[LARGE] + 2 * KV[LARGE]) / BANDWIDTH)


def test_decodes_share_the_weights_by_hand():
    """A tick of 8 reads the weights once; each token pays an eighth of them and its own KV."""
    usages = [Usage.alone("large", 1, 3)] * 5
    each = WEIGHTS[LARGE] / 8 + (2 + 1) * KV[LARGE]  # 2 keys on average, and the one written
    found = CardTime(IDEAL, 8).each(usages)
    assert found == pytest.approx(np.full(5, 3 * each / BANDWIDTH))


def test_both_models_one_after_the_other_by_hand():
    """4 tokens by the small model, then 2 by the large one, which reads 3 in its first pass."""
    small = 4 * (WEIGHTS[SMALL] + (2.5 + 1) * KV[SMALL])
    # Its passes see 4.5 and 5.5 keys if spread evenly; the first one has four rows, the other one.
    large = 2 * WEIGHTS[LARGE]
    seconds = CardTime(IDEAL, 1).total([routed(4, 2)])
    assert seconds == pytest.approx((small + large) / BANDWIDTH, rel=1e-4)


def test_a_long_prompt_takes_its_flops():
    """2,000 rows of the large model: FLOPs at the peak; its head once."""
    row = 2 * 64 * (5120 * (2 * 5120 + 2 * 1024) + 3 * 5120 * 27648)
    head, key = 2 * 5120 * 152_064, 4 * 64 * 5120
    flops = 2000 * row + key * 2000 * 2001 / 2 + head
    seconds = CardTime(IDEAL, 1).total([Usage.alone("large", 2000, 1)])
    assert seconds == pytest.approx(flops / PEAK, rel=1e-3)


def test_a_pass_with_guesses_counts_once():
    """Two passes of the large model cost two reads of its weights, however many rows they have."""
    bare = replace(guessed())
    bare.rows[:, RowKind.prompt] = 0
    bare.entries[:] = 0
    seconds = CardTime(IDEAL, 1).total([bare])
    weights = 6 * WEIGHTS[SMALL] + 2 * WEIGHTS[LARGE]
    assert seconds == pytest.approx(weights / BANDWIDTH, rel=1e-3)


def test_sizes_of_ticks():
    assert tick_size(64, 1) == 64 and tick_size(1, 0.3) == pytest.approx(1)
    assert tick_size(2, 0.5) == pytest.approx(4 / 3)  # both: 1/4, one: 1/2, none: no tick
    assert tick_size(64, 1e-9) == pytest.approx(1)


def test_readers_of_a_tick():
    """Two of which each reads every second time; and between one and two."""
    assert readers(2, 0.5) == pytest.approx({0: 0.25, 1: 0.5, 2: 0.25})
    assert readers(1.5, 0.5) == pytest.approx({0: 0.375, 1: 0.5, 2: 0.125})
    assert readers(3, 1) == {3: 1} and readers(3, 0) == {0: 1}
    for batch, chance in ((300.4, 0.1), (4096, 0.999)):
        found = readers(batch, chance)
        assert sum(found.values()) == pytest.approx(1)
        assert sum(n * p for n, p in found.items()) == pytest.approx(batch * chance)


def test_requests_share_out_the_whole():
    """Whatever they are, their parts add up, and the longer one pays more."""
    usages = [routed(40, 20, 30), routed(10, 5, 300), Usage.alone("small", 9, 9)]
    for load in (1, 16):
        each = CardTime(REAL, load).each(usages)
        again = CardTime(REAL, load).each([*usages, *usages])
        assert again == pytest.approx(np.tile(each, 2), rel=0.02)
        assert each[0] > each[1] > each[2] > 0


def simulated(handoff: float, load: int, means: Means) -> tuple[float, float]:
    """Seconds of a long simulation, and of the model for its counts."""
    geometry = ArenaGeometry.of(SHAPES, Config(block_tokens=BLOCK_TOKENS), KV_BYTES)
    setting = Setting(SHAPES, replace(geometry, slabs=4000), REAL)
    workload = Workload(max(20, 20 * load), means, 1, setting.most)
    run = Simulation(setting, workload, closed(handoff, load))
    seconds = run.run()["simulated_seconds"]
    return seconds, CardTime(REAL, load).total([run.requests.usage])


@pytest.mark.parametrize("means", [Means(256, 128, 32, 0.5), Means(1024, 256, 32, 0.5)])
@pytest.mark.parametrize(
    ("load", "within"),
    [(1, 0.02), (8, 0.1), (64, 0.16)],  # above 1 a twentieth is the run's end, with few left
)
def test_beside_the_simulator(means: Means, load: int, within: float):
    """One model alone, and one step in ten or three in ten by the large one."""
    errors = []
    for handoff in (1, 0, 0.1, 0.3):
        seconds, priced = simulated(handoff, load, means)
        assert priced == pytest.approx(seconds, rel=within), handoff
        errors.append(priced / seconds)
    # Relative to the large model alone, as tables have it, the run's end matters less.
    assert np.array(errors) / errors[0] == pytest.approx(1, rel=0.1)


def tokens(usages: Sequence[Usage], way: str, **prices: float) -> float:
    return sum(Tariff(**{"small": 0.05, **prices}).bill(usage, way) for usage in usages)


def test_bills_by_hand():
    """Small: 10 read, 4 generated. Large: 14 read, 3 generated, each entry read anew."""
    by_hand = 0.05 * (4 + 0.31 * 10) + 3 + 0.31 * 14
    assert tokens([routed(4, 3, 11)], "computed") == pytest.approx(by_hand)
    assert tokens([routed(4, 3, 11)], "stateless") == pytest.approx(by_hand)  # one entry each
    twice = routed(4, 3, 11)
    twice.entries[SMALL] += span_counts(0, 17)  # the small model goes on after 17 tokens
    assert tokens([twice], "stateless") == pytest.approx(by_hand + 0.05 * 0.31 * 17)
    cheap = tokens([twice], "stateless", cached=0.1)
    assert cheap == pytest.approx(by_hand + 0.05 * 0.1 * 17)
    assert tokens([twice], "computed", prompt=0, cached=0) == pytest.approx(0.05 * 4 + 3)
    with pytest.raises(ValueError, match="unknown way 'free'"):
        tokens([twice], "free")


def test_verified_guesses_are_read():
    """Two passes of the large model with 8 rows: 2 tokens generated, 6 rows read."""
    by_hand = 0.05 * (6 + 0.31 * 10) + 2 + 0.31 * (6 + 10)
    for way in ("computed", "stateless"):
        assert tokens([guessed()], way) == pytest.approx(by_hand)


def test_prices_go_by_parameters():
    assert small_price(SHAPES) == pytest.approx(1_543_714_304 / 32_763_876_352, rel=1e-6)
