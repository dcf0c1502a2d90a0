"""Penalties and biases in whole requests, and what they must leave alone."""

from __future__ import annotations

import pickle
import random
import zlib
from collections import Counter
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch

from engine import Engine, SamplingParams, SteerError, _core
from engine.config import TINY
from engine.execution.sampled_rows import DrawnRows, History, SampledRows
from engine.execution.sampler import Sampler
from engine.execution.scoring import scored_rows
from engine.requests.request_state import RequestState
from engine.routing.policies import Always, Call
from kernels import ops
from tests.engine.penalty_rules import BIAS, SETTINGS, slow

VOCABULARY = 38  # ids of the test pair's tokenizer; its large model's head has 48 rows
TIE = 1e-4
LOUD = SamplingParams(max_tokens=40, repetition_penalty=3.0, frequency_penalty=2.0)
GREEDY = SamplingParams(max_tokens=40)


def drawn(boundary):
    """A schedule that changes model at about every second boundary."""
    return ("small", "large")[zlib.crc32(str(boundary.position).encode()) % 2]


def check(pair, done, params, ties):
    """Each token leads in the oracle's penalised logits; how many would not lead without."""
    prompt, tokens = done.prompt_token_ids, [*done.prompt_token_ids, *done.token_ids]
    says = {r: pair.oracles[r].logits(tokens)[:, :VOCABULARY].tolist() for r in pair.oracles}
    moved = 0
    for step in done.steps:
        for place, token in enumerate(step.token_ids, step.position):
            raw = says[step.model][place - 1]
            row = slow(raw, prompt, tokens[len(prompt) : place], params)
            ties.compared += 1
            moved += raw[token] < max(raw) - TIE
            if row[token] != max(row):
                assert row[token] > max(row) - TIE, f"token {place}: {max(row)} over {row[token]}"
                ties.count += 1
    return moved


def finish(engine, ids, between=lambda alive: None):
    """Step until all are finished; completions by id."""
    done = {}
    while len(done) < len(ids):
        done |= {c.request_id: c for c in engine.step()}
        between([i for i in ids if i not in done])
    return done


@pytest.fixture
def engine(pair, delimiters):
    """A fresh engine with room for all."""
    return pair.engine(delimiters=delimiters, block_tokens=4, arena_tokens=8192, check_every=1)


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("setting", SETTINGS)
def test_greedy_text_obeys_the_rules(pair, engine, prompts, ties, setting, reads):
    """Both models under handoffs, each token against the oracle's logits and the slow rules."""
    params = SamplingParams(max_tokens=48, **SETTINGS[setting])
    done = engine.generate(prompts(8, seed=1), params, Call(drawn, reads=reads))
    assert sum(check(pair, c, params, ties) for c in done) > 20
    assert {s.model for c in done for s in c.steps} == {"small", "large"}
    assert all(s.model == drawn(s) for c in done for s in c.steps)


@pytest.mark.parametrize("reads", [False, True])
def test_what_is_taken_back_is_no_history(pair, engine, prompts, ties, reads):
    """Truncations and lost KV at random moments; the text is that of the rules all the same."""
    rng, policy, taken = random.Random(2), Call(drawn, reads=reads), []
    ids = [engine.submit(p, LOUD, policy, settle_at_once=False) for p in prompts(8, seed=2)]

    def disturb(alive):
        for request in [i for i in alive if len(taken) < 40 and rng.random() < 0.15]:
            sequence = engine.scheduler.sequence(request)
            length = rng.randint(sequence.prompt_length, sequence.length)
            taken.append(sequence.length - length)
            engine.scheduler.truncate(request, length)
            if rng.random() < 0.3:
                engine.scheduler.preempt(request)

    for completion in finish(engine, ids, disturb).values():
        assert check(pair, completion, LOUD, ties) > 5
    assert len(taken) >= 40 and sum(taken) > 80


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("role", ["small", "large"])
def test_a_bias_bans_and_forces(engine, prompts, role, temperature):
    """-100 keeps the commonest tokens out, +100 lets in nothing else."""
    batch, warm = prompts(4, seed=4), {"temperature": temperature, "seed": 1, "max_tokens": 30}
    plain = engine.generate(batch, SamplingParams(**warm), role)
    common = [t for t, _ in Counter(t for c in plain for t in c.token_ids).most_common(5)]
    banned = SamplingParams(**warm, logit_bias=dict.fromkeys(common, -100))
    for done in engine.generate(batch, banned, role):
        assert not {*common} & {*done.token_ids}
    for done in engine.generate(batch, SamplingParams(**warm, logit_bias={17: 100}), role):
        assert {*done.token_ids} == {17}


def test_warm_rows_are_penalised_before_truncation(engine, prompts):
    """Of one likeliest token the penalised greedy text is left, however warm."""
    batch, policy = prompts(6, seed=5), Call(drawn, reads=True)
    warm = replace(LOUD, temperature=1.5, top_k=1, seed=9)
    greedy = [c.token_ids for c in engine.generate(batch, LOUD, policy)]
    assert [c.token_ids for c in engine.generate(batch, warm, policy)] == greedy
    assert greedy != [c.token_ids for c in engine.generate(batch, GREEDY, policy)]


def test_min_tokens_wins_over_a_bias(engine):
    """A stop token that a bias forces comes as soon as it may, and not before."""
    params = SamplingParams(
        max_tokens=20, min_tokens=6, stop_token_ids=(4,), logit_bias={4: 100}, presence_penalty=2
    )
    (done,) = engine.generate(["abc"], params, "small")
    assert done.token_ids.index(4) == 6 and len(done.token_ids) == 7
    assert done.finish_reason == "stop"


@pytest.mark.parametrize("reads", [False, True])
def test_neighbours_do_not_notice(engine, prompts, reads):
    """Greedy and warm texts beside one penalised request are those beside a plain one."""
    batch, policy = prompts(12, seed=6), Call(drawn, reads=reads)
    own = [replace(GREEDY, temperature=i % 2, seed=i) for i in range(12)]
    texts = []
    for odd in (own[5], replace(LOUD, logit_bias=BIAS), replace(GREEDY, logprobs=5)):
        params = [*own[:5], odd, *own[6:]]
        ids = [engine.submit(p, q, policy) for p, q in zip(batch, params, strict=True)]
        done = finish(engine, ids)
        texts.append([done[i].token_ids for i in ids if i != ids[5]])
    assert texts[0] == texts[1] == texts[2]


def test_other_rows_keep_every_bit():
    """What is sampled from in rows without penalties are the model's own logits: in each row one
    token leads by the least that fp32 can tell, after one of a lower id that would win a tie."""
    params = [GREEDY, replace(GREEDY, temperature=1, top_k=1), LOUD, replace(GREEDY, logprobs=3)]
    specs = [
        RequestState(p, i, Always("small"), prompt_tokens=2)
        for i, p in enumerate((*params, GREEDY))
    ]
    backend, moved = ops.CpuBackend(), 0
    sampler = Sampler(0, VOCABULARY, backend)
    for seed in range(40):
        draw = torch.Generator().manual_seed(seed)
        logits = torch.randn(5, VOCABULARY + 10, generator=draw) * 2.0 ** (seed % 7)
        best = torch.randint(1, VOCABULARY, (5, 1), generator=draw)
        top = logits[:, :VOCABULARY].amax(1, keepdim=True) + 1
        logits.scatter_(1, torch.zeros_like(best), top)
        logits.scatter_(1, best, top.nextafter(torch.tensor(torch.inf)))
        before, last = logits.clone(), torch.zeros(5, dtype=torch.int32)
        history = {2: History(np.int32([3, 4]), best[2].int().numpy(), unread=False)}
        ids, contexts = np.arange(5), np.full(5, 3, np.int32)
        none = np.zeros(5, np.int32)
        rows = SampledRows(ids, contexts, none, specs, none.astype(bool))
        draws = sampler.prepared(rows, history)
        columns = {name: torch.from_numpy(column) for name, column in draws.columns.items()}
        confidence = backend.confidence(logits, VOCABULARY)
        chosen, scores = sampler.choose(logits, confidence, draws, columns, last)
        expected = best[:, 0].tolist()
        moved += int(chosen[2]) != expected[2]
        assert chosen.tolist()[:2] + chosen.tolist()[3:] == expected[:2] + expected[3:]
        found = sampler.drawn(chosen.tolist(), scores, rows)
        exact = logits[3, :VOCABULARY].double().log_softmax(-1)[expected[3]]
        assert found[3][0].logprobs.logprob == float(exact) and torch.equal(logits, before)
    assert moved > 20


def test_plain_rows_cost_nothing(engine, prompts, monkeypatch):
    """Without penalties greedy tokens come straight from the confidence pass."""
    for name in ("sample", "penalise", "editable", "token_logprobs"):
        monkeypatch.setattr(ops.CpuBackend, name, lambda *_: pytest.fail("not needed"))
    plain = SamplingParams(max_tokens=8, repetition_penalty=1, logit_bias={})
    assert len(engine.generate(prompts(3, seed=8), plain, Call(drawn, reads=True))) == 3
    with pytest.raises(pytest.fail.Exception):
        engine.generate(["abc"], replace(plain, presence_penalty=0.1), "small")


def test_histories_are_read_for_penalties_only(engine, prompts, monkeypatch):
    """A bias needs none; nor does what an audit would score, where there is none."""
    scheduler, requests, asked = engine.scheduler, {}, []
    copy = _core.Scheduler.tokens_since

    def tokens_since(core, request, *where):
        asked.append(request)
        return copy(core, request, *where)

    monkeypatch.setattr(_core.Scheduler, "tokens_since", tokens_since)
    for prompt, params in zip(
        prompts(3, seed=9), (GREEDY, replace(GREEDY, logit_bias=BIAS), LOUD), strict=True
    ):
        request = scheduler.add(prompt, max_tokens=40)
        requests[request] = RequestState(params, 0, Always("large"), len(prompt))
    for event in scheduler.take_events():
        scheduler.route(event.sequence, 1)
    assert scheduler.plan(1) == 3
    plan, sampler = scheduler.buffers(1), Sampler(1, VOCABULARY, ops.CpuBackend())
    assert sampler.prepare(plan, DrawnRows.of(plan), requests, scheduler).edits is not None
    assert scored_rows(plan, requests, scheduler, 1) is None
    assert asked == [max(requests)]


@pytest.mark.parametrize("setting", ["repetition", "all"])
def test_signals_are_the_models_own(pair, prompts, delimiters, setting):
    """A boundary's numbers and the decision on them are those of the raw logits of its text."""
    params, policy = SamplingParams(max_tokens=48, **SETTINGS[setting]), "threshold:max_prob:0.2"
    batch, config = prompts(8, seed=10), {"delimiters": delimiters, "prefix_cache": False}
    plain, done = (pair.engine(**config).generate(batch, p, policy) for p in (GREEDY, params))
    for before, completion in zip(plain, done, strict=True):
        assert before.steps[0].signals == completion.steps[0].signals
        assert before.steps[0].model == completion.steps[0].model
        tokens = [*completion.prompt_token_ids, *completion.token_ids]
        says = pair.oracles["small"].logits(tokens)[:, :VOCABULARY]
        for step in completion.steps:
            row = says[step.position - 1]
            top = float(row.softmax(-1).max())
            assert step.signals.max_prob == pytest.approx(top, abs=1e-4)
            assert step.signals.max_logit == pytest.approx(float(row.max()), abs=1e-4)
            assert step.signals.logsumexp == pytest.approx(float(row.logsumexp(-1)), abs=1e-4)
            if abs(top - 0.2) > 1e-3:
                assert step.model == ("small" if top > 0.2 else "large")
    assert {s.model for c in done for s in c.steps} == {"small", "large"}
    assert [c.token_ids for c in plain] != [c.token_ids for c in done]


def test_params_are_values():
    """A caller's dict does not leak in, nothing changes the copy, equal ones are equal."""
    given = {3: 1, 5: -2.5}
    params = SamplingParams(logit_bias=given)
    given[3] = 50
    given[9] = 1
    assert params.logit_bias == {3: 1.0, 5: -2.5} and isinstance(params.logit_bias[3], float)
    with pytest.raises(TypeError):
        params.logit_bias[3] = 2.0
    with pytest.raises(FrozenInstanceError):
        params.logit_bias = {}
    same = SamplingParams(logit_bias={5: -2.5, 3: 1.0})
    assert params == same and hash(params) == hash(same) and params != SamplingParams()
    assert replace(params, top_k=3).logit_bias == params.logit_bias
    assert pickle.loads(pickle.dumps(params)) == params
    assert eval(repr(params)) == params


def test_a_bias_of_a_foreign_token_is_refused():
    """Ids are checked when the request is queued, and nothing of it stays behind."""
    engine = Engine("tiny", small=TINY / "small", large=TINY / "large")
    size = engine.tokenizer.size
    params = SamplingParams(logit_bias={size - 1: 1.0, size: 1.0})
    message = rf"^logit_bias: token id {size} is not in 0\.\.{size - 1}$"
    with pytest.raises(SteerError, match=message):
        engine.submit("1+1?\n\n", params)
    assert engine.scheduler.running == engine.scheduler.waiting == 0
