"""Random numbers to the bit, kept sets against a slow version, and texts keyed by their seed."""

from __future__ import annotations

import math
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine import SamplingParams
from engine.routing.policies import Call
from kernels import ops
from kernels.reference.sampling import philox_uniform

# Random123's known answers for philox4x32-10: counter, key, the first two words of the output.
KNOWN = [
    ([0] * 4, (0, 0), (0x6627E8D5, 0xE169C58D)),
    ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), (0x408F276D, 0x41C83B0E)),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB),
    ),
]
SETTINGS = [  # temperature, top_k, top_p, min_p
    (1.0, 0, 1.0, 0.0),
    (0.7, 5, 1.0, 0.0),
    (1.3, 0, 0.8, 0.0),
    (1.0, 0, 1.0, 0.2),
    (0.9, 7, 0.9, 0.05),
    (2.0, 1, 1.0, 0.0),
    (1.0, 100, 0.01, 1.0),
]
ROLES = ("small", "large")
CPU = ops.CpuBackend()
# Chi-square's upper 1e-4 quantiles by degrees of freedom.
CRITICAL = {4: 23.51, 5: 25.74, 6: 27.86, 7: 29.88}


def uniforms(seeds, counters):
    """As numpy."""
    return philox_uniform(np.array(seeds, np.uint64), np.array(counters, np.uint64)).numpy()


def rows_of(settings, uniform):
    """Sampling rows, one a setting."""
    temperature, top_k, top_p, min_p = zip(*settings, strict=True)
    return ops.SamplingRows(
        torch.tensor(temperature, dtype=torch.float64),
        torch.tensor(top_k),
        torch.tensor(top_p, dtype=torch.float64),
        torch.tensor(min_p, dtype=torch.float64),
        torch.as_tensor(uniform, dtype=torch.float64),
    )


def draw(logits, setting, uniform):
    """Tokens of one distribution at many uniforms."""
    uniform = np.atleast_1d(uniform)
    many = torch.as_tensor(logits).expand(len(uniform), -1)
    return CPU.sample(many, many.shape[1], rows_of([setting] * len(uniform), uniform)).tolist()


def philox(key, counter):
    """The ten rounds with Python integers."""
    (k0, k1), c = key, list(counter)
    for _ in range(10):
        left, right = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        low = 0xFFFFFFFF
        c = [right >> 32 ^ c[1] ^ k0, right & low, left >> 32 ^ c[3] ^ k1, left & low]
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    return c


def kept(logits, temperature, top_k, top_p, min_p):
    """Kept ids, the most likely first, and their probabilities: one rule after the other."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    order = [i for i in order if logits[i] > -math.inf][: top_k or None]
    mass = [math.exp((logits[i] - logits[order[0]]) / temperature) for i in order]
    share = [m / math.fsum(mass) for m in mass]
    count = next((n for n in range(1, len(share)) if math.fsum(share[:n]) >= top_p), len(share))
    if top_p < 1:
        order, share = order[:count], share[:count]
    pairs = [(i, s) for i, s in zip(order, share, strict=True) if s >= min_p * share[0]]
    total = math.fsum(s for _, s in pairs)
    return [i for i, _ in pairs], [s / total for _, s in pairs]


def chi_square(draws, ids, shares):
    """Distance of frequencies from shares; nothing else may be drawn."""
    assert set(draws) <= set(ids)
    expected = [s * len(draws) for s in shares]
    found = [draws.count(i) for i in ids]
    return sum((f - e) ** 2 / e for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_known_answers(counter, key, words):
    """The uniform is the upper 53 of the first 64 output bits."""
    (found,) = uniforms([key[0] | key[1] << 32], [counter])
    bits = (words[0] << 32 | words[1]) >> 11
    assert found == bits / 2**53
    assert philox(key, counter)[:2] == list(words)


def test_philox_equals_the_slow_version():
    """Random keys and counters, many rows at once."""
    rng = np.random.default_rng(0)
    seeds = rng.integers(0, 2**64, 200, np.uint64)
    counters = rng.integers(0, 2**32, (200, 4), np.uint64)
    found = uniforms(seeds, counters)
    for value, seed, counter in zip(found, seeds.tolist(), counters.tolist(), strict=True):
        words = philox((seed & 0xFFFFFFFF, seed >> 32), counter)
        assert value == ((words[0] << 32 | words[1]) >> 11) / 2**53
    assert ((found >= 0) & (found < 1)).all()


def test_every_part_of_the_key_counts():
    """Seed halves, sample, position, model and attempt each give another number."""
    seeds = [0, 1, 1 << 32, 1 << 63, 0, 0, 0, 0]
    counters = [[0] * 4] * 4 + np.eye(4, dtype=int).tolist()
    assert len(set(uniforms(seeds, counters))) == 8


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("width", [1, 2, 9, 127])
def test_kept_set_and_order(setting, width):
    """The middle of each kept token's share draws it; nothing else can be drawn."""
    torch.manual_seed(width)
    logits = torch.randn(width, dtype=torch.float64) * 2
    if width > 2:
        logits[::3] = -math.inf
    ids, shares = kept(logits.tolist(), *setting)
    edges = np.cumsum([0.0, *shares])
    middles = (edges[1:] + edges[:-1]) / 2
    assert draw(logits, setting, middles) == ids
    assert draw(logits, setting, [0.0, 1 - 2.0**-53]) == [ids[0], ids[-1]]
    assert set(draw(logits, setting, np.linspace(0, 1, 500, endpoint=False))) <= set(ids)


@pytest.mark.parametrize("setting", SETTINGS)
def test_kept_set_among_many_equals(setting):
    """Seven values over 300 ids: equals stand in order of their ids."""
    torch.manual_seed(5)
    logits = torch.randint(-3, 4, (300,)).double()
    ids, shares = kept(logits.tolist(), *setting)
    edges = np.cumsum([0.0, *shares])
    assert draw(logits, setting, (edges[1:] + edges[:-1]) / 2) == ids


def test_the_token_that_crosses_top_p_is_kept():
    """Shares of a half, a quarter and two eighths: 0.6 keeps two, a bare half one."""
    logits = torch.tensor([0.125, 0.5, 0.125, 0.25], dtype=torch.float64).log()
    grid = np.linspace(0, 1, 64, endpoint=False)
    assert set(draw(logits, (1.0, 0, 0.49, 0.0), grid)) == {1}
    assert set(draw(logits, (1.0, 0, 0.6, 0.0), grid)) == {1, 3}
    assert set(draw(logits, (1.0, 0, 0.8, 0.0), grid)) == {1, 3, 0}
    # top_p counts what top_k left: of two, the first is two thirds
    assert set(draw(logits, (1.0, 2, 0.6, 0.0), grid)) == {1}
    assert set(draw(logits, (1.0, 0, 1.0, 0.3), grid)) == {1, 3}


def test_ties_go_to_the_lower_id():
    """Greedy, and where top_k or top_p must choose among equals."""
    logits = torch.tensor([1.0, 3.0, 3.0, 2.0, 3.0])
    grid = np.linspace(0, 1, 50, endpoint=False)
    assert set(draw(logits, (0.0, 0, 1.0, 0.0), grid)) == {1}
    assert set(draw(logits, (1.0, 1, 1.0, 0.0), grid)) == {1}
    assert set(draw(logits, (1.0, 2, 1.0, 0.0), grid)) == {1, 2}
    assert set(draw(torch.zeros(8), (1.0, 0, 0.3, 0.0), grid)) == {0, 1, 2}
    assert draw(torch.zeros(4), (1.0, 0, 1.0, 0.0), [0.0, 0.3, 0.6, 0.9]) == [0, 1, 2, 3]


def test_greedy_rows_among_sampled_rows():
    """Each row obeys its own parameters, as it would alone; padding ids are never drawn."""
    torch.manual_seed(1)
    logits = torch.randn(40, 30)
    logits[:, 25:] = 50.0
    settings = [SETTINGS[i % 7] if i % 3 else (0.0, i % 4, 0.5, 0.3) for i in range(40)]
    uniform = torch.rand(40, dtype=torch.float64)
    together = CPU.sample(logits, 25, rows_of(settings, uniform))
    assert (together[::3] == logits[::3, :25].argmax(-1)).all()
    for i, setting in enumerate(settings):
        row = rows_of([setting], uniform[i : i + 1])
        assert CPU.sample(logits[i : i + 1], 25, row).item() == together[i]


@pytest.mark.parametrize("setting", SETTINGS[:5])
def test_frequencies(setting):
    """20,000 keyed draws have the frequencies of the distribution."""
    logits = torch.tensor([0.3, -1.0, 1.2, 0.0, 0.9, -0.4, 0.5, -0.2], dtype=torch.float64)
    counters = np.zeros((20000, 4), np.uint64)
    counters[:, 1] = np.arange(20000)
    draws = draw(logits, setting, uniforms(np.full(20000, 7), counters))
    ids, shares = kept(logits.tolist(), *setting)
    assert chi_square(draws, ids, shares) < CRITICAL[len(ids) - 1]


def mixed(reads):
    """A schedule that changes model at about every second boundary."""

    def schedule(boundary):
        return ("small", "large")[zlib.crc32(str(boundary.position).encode()) % 2]

    return Call(schedule, reads=reads)


@pytest.fixture
def engine(pair, delimiters):
    """A fresh engine with room for all."""
    return pair.engine(delimiters=delimiters, block_tokens=4, arena_tokens=8192, check_every=1)


def warm(seed, tokens=40):
    """Plain sampling at temperature 1."""
    return SamplingParams(max_tokens=tokens, temperature=1.0, seed=seed)


@pytest.mark.parametrize("reads", [False, True])
def test_same_seed_alone_and_among_neighbours(engine, prompts, reads):
    """A text depends on its own seed, not on its place in a batch."""
    batch, policy = prompts(32, seed=2), mixed(reads)
    ids = [engine.submit(p, warm(100 + i), policy) for i, p in enumerate(batch)]
    together = {}
    while len(together) < 32:
        together |= {c.request_id: c.token_ids for c in engine.step()}
    for place in (0, 7, 31):
        (alone,) = engine.generate([batch[place]], warm(100 + place), policy)
        assert alone.token_ids == together[ids[place]]
        assert alone.seed == 100 + place


def test_different_seeds_differ(engine):
    """Forty seeds, forty texts; each replays when asked for by the seed it reports."""
    ids = [engine.submit("abc", warm(seed), "small") for seed in range(40)]
    done = []
    while len(done) < len(ids):
        done += engine.step()
    assert len({c.token_ids for c in done}) == len({c.seed for c in done}) == 40
    fresh = engine.generate(["abc"] * 8, warm(None), "large")
    assert len({c.seed for c in fresh}) == len({c.token_ids for c in fresh}) == 8
    for completion in fresh[:3]:
        (again,) = engine.generate(["abc"], warm(completion.seed), "large")
        assert again.token_ids == completion.token_ids


def test_preemption_does_not_change_a_draw(engine, prompts):
    """A row that is computed again for lost KV draws the same number."""
    batch, policy = prompts(6, seed=3), mixed(True)
    expected = [c.token_ids for c in engine.generate(batch, warm(5), policy)]
    ids = [engine.submit(p, warm(5), policy) for p in batch]
    found = {}
    for tick in range(1000):
        found |= {c.request_id: c.token_ids for c in engine.step()}
        if len(found) == len(ids):
            break
        victim = ids[tick % len(ids)]
        if tick % 3 == 0 and victim not in found:
            engine.scheduler.preempt(victim)
    assert [found[i] for i in ids] == expected
    assert engine.scheduler.counters()["preemptions"] > 5


def test_a_redraw_is_a_new_draw(engine):
    """Tokens that were taken back are not simply drawn again."""
    ids = [engine.submit([2], warm(s, 60), "small", settle_at_once=False) for s in range(8)]
    while any(engine.scheduler.sequence(i).length < 31 for i in ids):
        assert not engine.step()
    rejected = {i: engine.scheduler.sequence(i).tokens[:31].tolist() for i in ids}
    for request in ids:
        engine.scheduler.truncate(request, 1)
    done = {}
    while len(done) < len(ids):
        done |= {c.request_id: [2, *c.token_ids[:30]] for c in engine.step()}
    assert all(done[i] != rejected[i] for i in ids)


def test_the_models_draw_apart(pair):
    """Two lanes with the same weights: the same seed and place, yet not the same number."""
    folder = pair.folders[0]
    engine = replace(pair, folders=(folder, folder)).engine()
    texts = [
        [engine.generate(["abc"], warm(s, 8), r)[0].token_ids for s in range(8)] for r in ROLES
    ]
    assert all(small != large for small, large in zip(*texts, strict=True))


@pytest.mark.parametrize("role", ["small", "large"])
def test_first_tokens_have_the_oracles_frequencies(pair, engine, role):
    """End to end: 600 seeds of one prompt against transformers' distribution."""
    logits = pair.oracles[role].logits([2, 3, 4])[-1, : engine.tokenizer.size]
    params = {"max_tokens": 1, "temperature": 1.5, "top_k": 6}
    ids = [engine.submit([2, 3, 4], SamplingParams(seed=s, **params), role) for s in range(600)]
    done = []
    while len(done) < len(ids):
        done += [c.token_ids[0] for c in engine.step()]
    expected, shares = kept(logits.tolist(), 1.5, 6, 1.0, 0.0)
    assert chi_square(done, expected, shares) < CRITICAL[5]
