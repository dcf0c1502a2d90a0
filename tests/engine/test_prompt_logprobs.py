"""Log-probabilities of a prompt's tokens against the oracle's, however its rows are computed."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from engine import SamplingParams, Speculate, SteerError, TokenLogprobs, Verify
from engine.accounting.ledger import Usage
from engine.accounting.pricing import pair_flops
from engine.routing.policies import Always, Call
from tests.engine.conftest import random_prompts
from tests.engine.test_logprobs import NEAR, VOCABULARY, finish
from tests.engine.test_shortage import SHORTAGES, ShortQueue, every

ROLES = ("small", "large")
ASKED = SamplingParams(max_tokens=6, prompt_logprobs=4)
PLAIN = replace(ASKED, prompt_logprobs=None)
NOTHING = TokenLogprobs(None)


def check(pair, done, role, count=4, known=None):
    """Each entry is what the role's oracle says after the tokens before it; the first has none.

    ``known``: positions before it have numbers; by default all.
    """
    prompt, entries = done.prompt_token_ids, done.prompt_logprobs
    assert entries is not None and len(entries) == len(prompt) and entries[0] == NOTHING
    known = len(prompt) if known is None else known
    says = pair.oracles[role].logits(prompt)[:, :VOCABULARY].double().log_softmax(-1)
    for place in range(1, known):
        entry, row = entries[place], says[place - 1]
        assert entry.logprob == pytest.approx(float(row[prompt[place]]), abs=NEAR), place
        ids, values = [i for i, _ in entry.top], [v for _, v in entry.top]
        assert len(set(ids)) == count
        assert values == pytest.approx(row.topk(count).values.tolist(), abs=NEAR)
        assert values == pytest.approx(row[ids].tolist(), abs=NEAR)
        assert values == sorted(values, reverse=True)
        assert dict(entry.top).get(prompt[place], entry.logprob) == entry.logprob
    assert set(entries[known:]) <= {NOTHING}


def make(pair, **config):
    """An engine with small blocks and room for all."""
    return pair.engine(**{"block_tokens": 4, "arena_tokens": 8192, "check_every": 1, **config})


@pytest.mark.parametrize("cpu_kernels", [True, False])
@pytest.mark.parametrize("count", [0, 1, 20])
@pytest.mark.parametrize("role", ROLES)
def test_one_model_alone(pair, prompts, role, count, cpu_kernels):
    """Prompts of any length, one token too; by the compiled pass and op by op."""
    engine = make(pair, cpu_kernels=cpu_kernels)
    batch = [[5], *prompts(6, seed=1)]
    for done in engine.generate(batch, replace(ASKED, prompt_logprobs=count), role):
        check(pair, done, role, count)
        assert done.logprobs is None and len(done.token_ids) == 6


@pytest.mark.parametrize("ahead", ["off", "both"])
@pytest.mark.parametrize("role", ROLES)
def test_prompts_longer_than_a_tick(pair, role, ahead):
    """Chunks end anywhere; a chunk's last row predicts the first token of the next."""
    engine = make(pair, max_tick_tokens=7, max_sequences=4, plan_ahead=ahead)
    batch = random_prompts(6, seed=2, longest=60)
    assert sum(len(prompt) > 20 for prompt in batch) > 2
    for done in engine.generate(batch, ASKED, role):
        check(pair, done, role)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("role", ROLES)
def test_neighbours_are_left_alone(pair, prompts, role, padded):
    """Other requests of a tick write the same text, and each request gets its own count."""
    batch, config = prompts(8, seed=3), {"graphs": "on"} if padded else {}
    both = {**config, "prefix_cache": False}
    texts = [c.token_ids for c in make(pair, **both).generate(batch, PLAIN, role)]
    engine, counts = make(pair, **both), [None, 3, None, 0, 20, None, 1, 4]
    params = [replace(ASKED, prompt_logprobs=count) for count in counts]
    ids = [engine.submit(p, each, role) for p, each in zip(batch, params, strict=True)]
    done = finish(engine, ids)
    assert [done[i].token_ids for i in ids] == texts
    for request, count in zip(ids, counts, strict=True):
        if count is None:
            assert done[request].prompt_logprobs is None
        else:
            check(pair, done[request], role, count)


@pytest.mark.parametrize("role", ROLES)
def test_a_warm_cache_gives_no_row(pair, role):
    """What others have cached is computed again, and what this computes is there for others."""
    engine, model = make(pair), ROLES.index(role)
    batch = random_prompts(4, seed=4, longest=50)
    cold = engine.generate(batch, PLAIN, role)
    warm = engine.generate(batch, PLAIN, role)
    assert sum(int(c.usage.cached[model]) for c in warm) > 50
    scored = engine.generate(batch, ASKED, role)
    for done, before in zip(scored, cold, strict=True):
        check(pair, done, role)
        assert done.token_ids == before.token_ids and not done.usage.cached.any()
    fresh = make(pair)
    fresh.generate(batch, ASKED, role)
    after = fresh.generate(batch, PLAIN, role)
    assert [c.usage.cached.tolist() for c in after] == [c.usage.cached.tolist() for c in warm]


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("role", ROLES)
def test_samples_of_a_prompt(pair, role, cache):
    """One of them computes a row, each has its number: also where the first sample is aborted."""
    engine = make(pair, prefix_cache=cache, max_tick_tokens=8, max_sequences=4)
    model, prompt = ROLES.index(role), [5, 5, *range(3, 33)]
    if cache:
        engine.generate([prompt], PLAIN, role)
    params = replace(ASKED, n=3, temperature=1.0, seed=3)
    done = engine.generate([prompt], params, role)
    for each in done:
        check(pair, each, role)
    assert sum(int(c.usage.scored[model]) for c in done) == len(prompt) - 1
    first, *others = engine.submit_samples(prompt, params, role)
    for _ in range(2):
        engine.step()
    engine.abort(first)
    ended = finish(engine, [first, *others])
    assert ended[first].finish_reason == "abort"
    for each in others:
        check(pair, ended[each], role)


@pytest.mark.parametrize("role", ROLES)
def test_an_aborted_request_has_what_was_computed(pair, role):
    engine = make(pair, max_tick_tokens=8, max_sequences=4, plan_ahead="off")
    prompt = list(range(2, 34))
    running = engine.submit(prompt, ASKED, role)
    for _ in range(3):
        engine.step()
    computed = engine.scheduler.sequence(running).computed[ROLES.index(role)]
    waiting = engine.submit(prompt, ASKED, role)
    for request in (running, waiting):
        engine.abort(request)
    done = finish(engine, [waiting, running])
    assert 0 < computed < len(prompt)
    check(pair, done[running], role, known=computed + 1)
    check(pair, done[waiting], role, known=1)


@pytest.mark.parametrize("host", [0, 4096])
@pytest.mark.parametrize("role", ROLES)
def test_lost_rows_are_not_scored_again(pair, role, host):
    """A preempted request computes rows once more, and each token has one number."""
    rng, model = random.Random(6), ROLES.index(role)
    config = {"host_kv_tokens": host} if host else {}
    engine = make(pair, max_tick_tokens=9, max_sequences=4, plan_ahead="off", **config)
    batch = random_prompts(8, seed=6, longest=50)
    ids = [engine.submit(prompt, ASKED, role) for prompt in batch]

    def preempt(alive):
        for request in [i for i in alive if rng.random() < 0.25]:
            engine.scheduler.preempt(request)

    done = finish(engine, ids, preempt)
    assert engine.scheduler.counters()["preemptions"] > 10
    again = 0
    for each in done.values():
        check(pair, each, role)
        again += each.usage.count(role, "recompute") + int(each.usage.cached[model])
        assert each.usage.scored[model] == len(each.prompt_token_ids) - 1
    assert again > 20


@pytest.mark.parametrize("role", ROLES)
def test_in_an_arena_too_small_for_all(pair, role):
    """Sequences lose KV of their prompts to each other and to the other model."""
    config = {"arena_tokens": 176, "eager_admission": True, "max_sequences": 8}
    engine = make(pair, max_tick_tokens=16, **config)
    both = Call(lambda b: ROLES[b.position // 5 % 2], reads=True)
    params, batch = replace(ASKED, max_tokens=40), random_prompts(12, seed=7, longest=60)
    ids, mixed = [], []
    for number, prompt in enumerate(batch):
        ids.append(engine.submit(prompt, params, role))
        if number % 3 == 2:
            mixed.append(engine.submit(prompt, replace(params, prompt_logprobs=None), both))
    done = finish(engine, ids + mixed)
    lost = sum(done[i].usage.count(role, "recompute") for i in ids)
    assert engine.scheduler.counters()["suspended"] > 3 and lost > 20
    for request in ids:
        check(pair, done[request], role)


def at_any_copy():
    """At any of the five copies that a tick fetches, but never twice in one tick."""
    for gap in itertools.cycle((9, 11, 8, 13, 10)):
        yield from [False] * gap
        yield True


@pytest.mark.parametrize("where", ["submit", "fetch"])
@pytest.mark.parametrize("role", ROLES)
def test_a_tick_that_is_tried_again(pair, role, where):
    """Whatever found no memory; a number is kept once the tick has succeeded."""
    engine, model = make(pair, max_tick_tokens=8, max_sequences=4), ROLES.index(role)
    submits, fetches = (every(5), ()) if where == "submit" else ((), at_any_copy())
    queue = ShortQueue(SHORTAGES["allocator"], submits, fetches)
    engine.lanes[model].runner.queue = queue
    for done in engine.generate(random_prompts(6, seed=8), ASKED, role):
        check(pair, done, role)
        assert done.finish_reason == "length"
    assert queue.released > 3


def test_guesses_change_nothing(pair, prompts):
    """With speculate it is still the large model that writes all."""
    batch = prompts(6, seed=9)
    params = replace(ASKED, max_tokens=20, logprobs=2)
    plain = make(pair, prefix_cache=False).generate(batch, params, "large")
    guessed = make(pair, prefix_cache=False).generate(batch, params, Speculate())
    assert sum(c.usage.speculated.passes for c in guessed) > 0
    for done, expected in zip(guessed, plain, strict=True):
        check(pair, done, "large")
        assert done.token_ids == expected.token_ids


@pytest.mark.parametrize("role", ROLES)
def test_unusable_logits_have_no_number(pair, role):
    """A request that ends with an error says None, not NaN."""
    engine = make(pair)
    engine.lanes[ROLES.index(role)].runner.decoder.norm.fill_(float("nan"))
    (done,) = engine.generate([list(range(2, 12))], ASKED, role)
    assert done.finish_reason == "error" and done.prompt_logprobs == (NOTHING,) * 10


@pytest.mark.parametrize("role", ROLES)
def test_the_ledger_counts_their_heads(pair, role):
    """What the engine executed is what the counts are priced at; they survive a trace."""
    engine, model = make(pair, prefix_cache=False), ROLES.index(role)
    prompt = list(range(2, 22))
    (done,) = engine.generate([prompt], ASKED, role)
    assert done.usage.scored.tolist()[model] == 19 and done.usage.scored.sum() == 19
    executed, shape = engine.executed[role], engine.shapes[model]
    assert executed.head == (19 + 6) * 2 * shape.vocab_size * shape.hidden_size
    (plain,) = make(pair, prefix_cache=False).generate([prompt], PLAIN, role)
    more = pair_flops(done.usage, engine.shapes, "catchup")
    more -= pair_flops(plain.usage, engine.shapes, "catchup")
    assert more == 19 * 2 * shape.vocab_size * shape.hidden_size
    assert Usage.from_json(done.usage.to_json()) == done.usage
    assert "scored" not in plain.usage.to_json()


@pytest.mark.parametrize("value", [-1, 21])
def test_counts_out_of_range(value):
    with pytest.raises(
        SteerError, match=rf"prompt_logprobs must be None or in 0\.\.20, got {value}"
    ):
        SamplingParams(prompt_logprobs=value)


@pytest.mark.parametrize("value", [True, 2.0, "5", []])
def test_counts_of_a_wrong_type(value):
    with pytest.raises(SteerError, match="prompt_logprobs must be a whole number or None, got"):
        SamplingParams(prompt_logprobs=value)


@pytest.mark.parametrize(
    "policy",
    ["random:0.5", "audit:-5", "verify", "threshold:max_prob:0.5", Verify(mark=1.0),
     Speculate(Call(lambda b: "large")), Call(lambda b: "large"), lambda b: "small"],
)  # fmt: skip
def test_other_policies_are_refused(pair, policy):
    """One model must read the whole prompt, and the engine must know which."""
    engine = make(pair)
    with pytest.raises(
        SteerError, match=r"^prompt_logprobs: the policy must be small or large, as"
    ):
        engine.submit([3, 4], ASKED, policy)
    assert engine.submit([3, 4], PLAIN, policy) >= 0


@pytest.mark.parametrize("limit", [{"max_large_share": 0.5}, {"max_flops": 1e9}])
def test_limits_that_could_hand_over_are_refused(pair, limit):
    engine, params = make(pair), replace(ASKED, **limit)
    with pytest.raises(SteerError, match=r"^prompt_logprobs: the large model must write the whole"):
        engine.submit([3, 4], params, "large")
    (done,) = engine.generate([[3, 4]], params, Always("small"))
    check(pair, done, "small")
