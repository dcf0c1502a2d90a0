"""Random words to the bit, kept sets against a slow version, and texts keyed by seed and prompt."""

from __future__ import annotations

import math
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine import SamplingParams
from engine.execution.draw_key import draw_key
from engine.routing.policies import Call
from kernels import ops
from kernels.reference import sampling

# Random123's known answer for philox4x32-10: counter, key, output. The last counter is a token's
# id // 4, so only answers of small ones can be asked for.
KNOWN = ([0] * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8))
KNOWN_SLOW = (
    ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)
SETTINGS = [  # temperature, top_k, top_p, min_p
    (1.0, 0, 1.0, 0.0),
    (0.7, 5, 1.0, 0.0),
    (1.3, 0, 0.8, 0.0),
    (1.0, 0, 1.0, 0.2),
    (0.9, 7, 0.9, 0.05),
    (2.0, 1, 1.0, 0.0),
    (1.0, 100, 0.01, 1.0),
]
HASH = 0xB4FB5A8DE61ABA77  # of seed 1 and prompt [2, 3]
ROLES = ("small", "large")
CPU = ops.CpuBackend()
# Chi-square's upper 1e-4 quantiles by degrees of freedom.
CRITICAL = {4: 23.51, 5: 25.74, 6: 27.86, 7: 29.88}


def rows_of(settings, key=7):
    """Keys of one request at its positions, one setting a row."""
    temperature, top_k, top_p, min_p = zip(*settings, strict=True)
    counter = torch.zeros(len(settings), 3, dtype=torch.int64)
    counter[:, 1] = torch.arange(len(settings))
    keys = {"key": [key] * len(settings), "counter": counter}
    return ops.DrawRows.on(
        "cpu", temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, **keys
    )


def draw(logits, setting, count, backend=CPU):
    """Tokens of one distribution at many positions."""
    many = torch.as_tensor(logits).expand(count, -1).contiguous()
    return backend.sample(many, many.shape[1], rows_of([setting] * count)).tolist()


def kept_by_reference(logits, setting):
    """The ids that the reference lets race."""
    mask = sampling.kept(logits[None] / setting[0], rows_of([setting]))
    return set(mask[0].nonzero()[:, 0].tolist())


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


def test_philox_known_answers():
    counter, (k0, k1), words = KNOWN
    found = sampling.philox_words(torch.tensor([k0 | k1 << 32]), torch.tensor([counter[:3]]), 4)
    assert found.tolist() == [list(words)]
    for counter, key, words in (KNOWN, *KNOWN_SLOW):
        assert philox(key, counter) == list(words)


def test_words_equal_the_slow_version():
    """Random keys and counters, many rows at once; the last four words are cut off."""
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 2**64, 50, np.uint64)
    counters = rng.integers(0, 2**32, (50, 3))
    found = sampling.philox_words(
        torch.from_numpy(keys.view(np.int64)), torch.from_numpy(counters), 7
    )
    for words, key, counter in zip(found.tolist(), keys.tolist(), counters.tolist(), strict=True):
        slow = [philox((key & 0xFFFFFFFF, key >> 32), [*counter, group]) for group in (0, 1)]
        assert words == [*slow[0], *slow[1]][:7]


def test_every_part_of_the_key_counts():
    """Key halves, sample, position, and model with attempt each give other words."""
    keys = torch.tensor([0, 1, 1 << 32, -(1 << 63), 0, 0, 0])
    counters = torch.tensor([[0] * 3] * 4 + np.eye(3, dtype=int).tolist())
    assert len({tuple(w) for w in sampling.philox_words(keys, counters, 8).tolist()}) == 7


def test_the_prompt_is_a_part_of_the_key():
    """Of 64 bits, the same in every process; seed, ids and their order count."""
    assert draw_key(1, [2, 3]) == HASH and draw_key(2**64 - 1, [2, 3]) < 2**64
    keys = {draw_key(s, p) for s in (0, 1, 2**63) for p in ([2, 3], [3, 2], [2], [2, 3, 0])}
    assert len(keys) == 12


@pytest.mark.parametrize("backend", [CPU, ops.ReferenceBackend()])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("width", [1, 2, 9, 127])
def test_kept_sets(setting, width, backend):
    """Only what is kept is drawn, and hot rows draw all of it: z / T is what the filters see."""
    torch.manual_seed(width)
    logits = torch.randn(width, dtype=torch.float64) * 2
    if width > 2:
        logits[::3] = -math.inf
    ids, shares = kept(logits.tolist(), *setting)
    draws = draw(logits, setting, 400, backend)
    assert set(draws) <= set(ids)
    assert {i for i, share in zip(ids, shares, strict=True) if share > 0.05} <= set(draws)
    rows = rows_of([setting])
    assert set(sampling.kept(logits[None] / setting[0], rows)[0].nonzero()[:, 0].tolist()) == set(
        ids
    )


@pytest.mark.parametrize("setting", SETTINGS)
def test_kept_set_among_many_equals(setting):
    """Seven values over 300 ids: of equals the lower ids are kept."""
    torch.manual_seed(5)
    logits = torch.randint(-3, 4, (300,)).double()
    ids, _ = kept(logits.tolist(), *setting)
    rows = rows_of([setting])
    assert set(sampling.kept(logits[None] / setting[0], rows)[0].nonzero()[:, 0].tolist()) == set(
        ids
    )
    assert set(draw(logits, setting, 400)) <= set(ids)


@pytest.mark.parametrize("backend", [CPU, ops.ReferenceBackend()])
def test_the_token_that_crosses_top_p_is_kept(backend):
    """Shares of a half, a quarter and two eighths: 0.6 keeps two, a bare half one."""
    logits = torch.tensor([0.125, 0.5, 0.125, 0.25], dtype=torch.float64).log()
    assert set(draw(logits, (1.0, 0, 0.49, 0.0), 64, backend)) == {1}
    assert set(draw(logits, (1.0, 0, 0.6, 0.0), 64, backend)) == {1, 3}
    assert set(draw(logits, (1.0, 0, 0.8, 0.0), 64, backend)) == {1, 3, 0}
    # top_p counts what top_k left: of two, the first is two thirds
    assert set(draw(logits, (1.0, 2, 0.6, 0.0), 64, backend)) == {1}
    assert set(draw(logits, (1.0, 0, 1.0, 0.3), 64, backend)) == {1, 3}


@pytest.mark.parametrize("backend", [CPU, ops.ReferenceBackend()])
def test_ties_go_to_the_lower_id(backend):
    """Greedy, and where top_k or top_p must choose among equals."""
    logits = torch.tensor([1.0, 3.0, 3.0, 2.0, 3.0])
    assert set(draw(logits, (0.0, 0, 1.0, 0.0), 50, backend)) == {1}
    assert set(draw(logits, (1.0, 1, 1.0, 0.0), 50, backend)) == {1}
    assert set(draw(logits, (1.0, 2, 1.0, 0.0), 50, backend)) == {1, 2}
    assert set(draw(torch.zeros(8), (1.0, 0, 0.3, 0.0), 50, backend)) == {0, 1, 2}
    assert set(draw(torch.zeros(4), (1.0, 0, 1.0, 0.0), 50, backend)) == {0, 1, 2, 3}


def test_greedy_rows_among_sampled_rows():
    """Each row obeys its own parameters, as it would alone; padding ids are never drawn."""
    torch.manual_seed(1)
    logits = torch.randn(40, 30)
    logits[:, 25:] = 50.0
    settings = [SETTINGS[i % 7] if i % 3 else (0.0, i % 4, 0.5, 0.3) for i in range(40)]
    rows = rows_of(settings)
    together = CPU.sample(logits, 25, rows)
    assert (together[::3] == logits[::3, :25].argmax(-1)).all() and (together < 25).all()
    assert torch.equal(CPU.sample(logits, 25, rows, fused=False), together)
    for i in range(40):
        alone = ops.DrawRows(**{name: column[i : i + 1] for name, column in vars(rows).items()})
        assert CPU.sample(logits[i : i + 1], 25, alone).item() == together[i]


@pytest.mark.parametrize("backend", [CPU, ops.ReferenceBackend()])
@pytest.mark.parametrize("setting", SETTINGS[:5])
def test_frequencies(setting, backend):
    """20,000 keyed draws have the frequencies of the distribution."""
    logits = torch.tensor([0.3, -1.0, 1.2, 0.0, 0.9, -0.4, 0.5, -0.2], dtype=torch.float64)
    draws = draw(logits, setting, 20000, backend)
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


def test_requests_with_one_seed_share_no_noise(engine, monkeypatch):
    """Keys differ by the prompt; samples of one prompt share it and differ in their counters."""
    keys, counters = set(), set()
    sample = ops.CpuBackend.sample

    def watched(self, logits, vocabulary, rows, fused=True):
        keys.update(rows.key.tolist())
        counters.update(map(tuple, rows.counter.tolist()))
        return sample(self, logits, vocabulary, rows, fused)

    monkeypatch.setattr(ops.CpuBackend, "sample", watched)
    engine.generate(["abc", "abd"], warm(3, 2), "small")
    assert len(keys) == 2 and {c[0] for c in counters} == {0}
    keys.clear(), counters.clear()
    engine.submit_samples("abc", replace(warm(3, 2), n=3), "large")
    while engine.scheduler.running or engine.scheduler.waiting:
        engine.step()
    assert len(keys) == 1
    assert {(c[0], c[2]) for c in counters} == {(0, 1), (1, 1), (2, 1)}


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
