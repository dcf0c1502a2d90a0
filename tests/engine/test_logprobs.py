"""Log-probabilities of generated tokens against the oracle's, however the tokens came about."""

from __future__ import annotations

import math
import random
import zlib
from dataclasses import replace

import pytest
import torch

from engine import Calibration, SamplingParams, Steer, Threshold, TokenLogprobs
from engine._core import Phase
from engine.execution.logprobs import DrawLog, Drawn
from engine.request import Step
from engine.routing.policies import Call
from kernels import ops

VOCABULARY = 38  # ids of the test pair's tokenizer; its large model's head has 48 rows
NEAR = 1e-4
INF = math.inf
CPU = ops.CpuBackend()
ASKED = SamplingParams(max_tokens=40, logprobs=4)
WARM = replace(ASKED, temperature=1.0, seed=5)


def drawn(boundary):
    """A schedule that changes model at about every second boundary."""
    return ("small", "large")[zlib.crc32(str(boundary.position).encode()) % 2]


def check(pair, done, count):
    """Each entry is what the oracle of the model that wrote the token says of the final text."""
    assert done.logprobs is not None and len(done.logprobs) == len(done.token_ids)
    tokens = [*done.prompt_token_ids, *done.token_ids]
    says = {
        role: oracle.logits(tokens)[:, :VOCABULARY].double().log_softmax(-1)
        for role, oracle in pair.oracles.items()
    }
    entries = iter(done.logprobs)
    for step in done.steps:
        for place, token in enumerate(step.token_ids, step.position):
            entry, row = next(entries), says[step.model][place - 1]
            assert entry.logprob == pytest.approx(float(row[token]), abs=NEAR), place
            ids, values = [i for i, _ in entry.top], [v for _, v in entry.top]
            assert len(set(ids)) == count
            assert values == pytest.approx(row.topk(count).values.tolist(), abs=NEAR)
            assert values == pytest.approx(row[ids].tolist(), abs=NEAR)
            assert values == sorted(values, reverse=True)
            assert dict(entry.top).get(token, entry.logprob) == entry.logprob


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


@pytest.mark.parametrize("count", [0, 1, 5, 29, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_op(count, dtype):
    """Padding takes no part, equals stand in order of their ids, impossible tokens come last."""
    torch.manual_seed(count)
    logits = (torch.randn(9, 35) * 4).to(dtype)
    logits[:, 29:] = math.nan
    logits[1, :29] = 2.5
    logits[2, ::2] = -INF
    logits[3, [3, 11, 20]] = 30.0
    logits[4] = logits[5]
    logits[6, 0] += 1000
    tokens = torch.arange(9) * 3
    found = CPU.token_logprobs(logits, 29, tokens, count)
    for i in range(9):
        row = [float(z) for z in logits[i, :29]]
        total = max(row) + math.log(math.fsum(math.exp(z - max(row)) for z in row))
        order = sorted(range(29), key=lambda t, row=row: (-row[t], t))[:count]
        assert float(found.drawn[i]) == pytest.approx(row[3 * i] - total, rel=1e-12, abs=1e-12)
        assert found.top_ids[i].tolist() == order
        expected = [row[t] - total for t in order]
        assert found.top[i].tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert found.drawn.dtype == found.top.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_scores_of_given_tokens(dtype):
    """As the log-softmax says; NaN for what is no token, and in rows without a distribution."""
    torch.manual_seed(0)
    logits = (torch.randn(6, 35) * 4).to(dtype)
    logits[0, 2] += 60
    logits[1, ::2] = -INF
    logits[2] += 1000
    logits[5, 7] = math.nan
    targets = torch.tensor([[0, 2, 28], [0, 1, 5], [3, 4, 5], [-1, 29, 0], [9, 9, 9], [0, 1, 2]])
    found = CPU.score(logits, 29, targets)
    logs = logits[:5, :29].double().log_softmax(-1).gather(1, targets[:5].clamp(0, 28))
    logs[3, :2] = math.nan
    close = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(found[:5], logs, rtol=close, atol=close, equal_nan=True)
    assert found[5].isnan().all() and found.dtype == torch.float64
    assert torch.equal(CPU.score(logits[:3], 29, targets[:3, 1].clone()), found[:3, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("slab", [1, 1000, ops.WORKSPACE])  # bytes of weights widened at a time
def test_logits_to_score_with_are_not_rounded(dtype, slab):
    """Not even where weights have two bytes: a bf16 of 20 stands for anything within 0.06."""
    backend = ops.CpuBackend()
    backend.workspace = slab
    torch.manual_seed(0)
    hidden, head = (torch.randn(rows, 64).to(dtype) for rows in (5, 35))
    found = backend.head_logits(hidden, head, 29)
    exact = hidden.double() @ head.double().T
    assert found.dtype == torch.float32 and float(exact.abs().max()) > 16
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 20])
@pytest.mark.parametrize("role", ["small", "large"])
def test_one_model_alone(pair, engine, prompts, role, count):
    """Greedy: the token is the likeliest, and its number that of the oracle."""
    for done in engine.generate(prompts(6, seed=1), replace(ASKED, logprobs=count), role):
        check(pair, done, count)
        for entry, token in zip(done.logprobs, done.token_ids, strict=True):
            assert count == 0 or entry.top[0] == (token, entry.logprob)


@pytest.mark.parametrize("params", [ASKED, WARM])
@pytest.mark.parametrize("reads", [False, True])
def test_under_handoffs(pair, engine, prompts, params, reads):
    """A boundary's candidate that was dropped leaves no number behind."""
    done = engine.generate(prompts(12, seed=2), params, Call(drawn, reads=reads))
    for completion in done:
        check(pair, completion, 4)
    assert {s.model for c in done for s in c.steps} == {"small", "large"}
    discarded = sum(c.usage.count("small", "discarded") for c in done)
    assert discarded > 20 if reads else discarded == 0


@pytest.mark.parametrize("params", [ASKED, WARM])
@pytest.mark.parametrize("name", ["steer", "random"])
def test_under_policies(pair, engine, prompts, params, name):
    """Those that come with the engine; STEER on a calibration for this pair."""
    batch, policy = prompts(12, seed=3), "random:0.5"
    if name == "steer":
        traces = engine.generate(batch, ASKED, Threshold("max_prob", 0.0))
        signals = [step.signals for trace in traces for step in trace.steps]
        calibration = Calibration.fit(engine.fingerprint, "max_prob", signals, tau=0.5)
        policy = Steer(calibration)
    done = engine.generate(batch, params, policy)
    for completion in done:
        check(pair, completion, 4)
    assert {s.model for c in done for s in c.steps} == {"small", "large"}


@pytest.mark.parametrize("params", [ASKED, WARM])
@pytest.mark.parametrize("reads", [False, True])
def test_under_truncations(pair, engine, prompts, params, reads):
    """What was taken back, also from a batch in flight, leaves no number behind."""
    rng, policy, taken = random.Random(4), Call(drawn, reads=reads), []
    scheduler = engine.scheduler
    ids = [engine.submit(p, params, policy, settle_at_once=False) for p in prompts(8, seed=4)]

    def disturb(alive):
        for lane in range(2):  # the next step finds this plan in flight and runs it
            if not scheduler.buffers(lane).in_flight and rng.random() < 0.3:
                scheduler.plan(lane)
        for request in [i for i in alive if len(taken) < 50 and rng.random() < 0.15]:
            sequence = scheduler.sequence(request)
            if sequence.phase != Phase.finished:
                length = rng.randint(sequence.prompt_length, sequence.length)
                taken.append((sequence.length - length, max(sequence.in_flight)))
                scheduler.truncate(request, length)

    for completion in finish(engine, ids, disturb).values():
        check(pair, completion, 4)
        assert len(completion.token_ids) == 40
    assert len(taken) >= 50 and sum(length for length, _ in taken) > 120
    assert sum(flying > 0 for _, flying in taken) > 5


def test_lost_kv_changes_nothing(pair, engine, prompts):
    """Rows that are computed again give no second number."""
    rng, policy = random.Random(5), Call(drawn, reads=True)
    ids = [engine.submit(p, WARM, policy) for p in prompts(8, seed=5)]

    def preempt(alive):
        for request in [i for i in alive if rng.random() < 0.1]:
            engine.scheduler.preempt(request)

    for completion in finish(engine, ids, preempt).values():
        check(pair, completion, 4)
    assert engine.scheduler.counters()["preemptions"] > 10


@pytest.mark.parametrize("reads", [False, True])
def test_an_aborted_request_keeps_those_of_its_tokens(pair, engine, prompts, reads):
    """As many numbers as tokens, none at all included, also for a batch in flight."""
    rng, policy = random.Random(6), Call(drawn, reads=reads)
    ids = [engine.submit(p, WARM, policy) for p in prompts(24, seed=6)]
    engine.abort(ids[0])

    def abort(alive):
        for lane in range(2):
            if not engine.scheduler.buffers(lane).in_flight and rng.random() < 0.3:
                engine.scheduler.plan(lane)
        for request in [i for i in alive if rng.random() < 0.06]:
            engine.abort(request)

    done = finish(engine, ids, abort)
    assert done[ids[0]].logprobs == ()
    for completion in done.values():
        check(pair, completion, 4)
    assert sum(c.finish_reason == "abort" for c in done.values()) > 10


def test_an_error_keeps_those_before_it(pair, engine, prompts):
    """Unusable logits draw nothing."""
    ids = [engine.submit(p, ASKED, "small") for p in prompts(3, seed=7)]
    for _ in range(6):
        engine.step()
    decoder = engine.lanes[0].runner.decoder
    decoder.norm.fill_(float("nan"))
    for completion in finish(engine, ids).values():
        assert completion.finish_reason == "error" and len(completion.token_ids) == 6
        check(pair, completion, 4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_they_are_raw(pair, engine, prompts, temperature):
    """Penalties, biases, temperature and truncation change the text, not what the model said."""
    params = replace(
        ASKED,
        temperature=2 * temperature,
        top_k=9,
        seed=1,
        repetition_penalty=2.0,
        presence_penalty=1.0,
        frequency_penalty=0.5,
        logit_bias={7: 3.0, 11: -100.0},
    )
    for done in engine.generate(prompts(6, seed=8), params, Call(drawn, reads=True)):
        check(pair, done, 4)
        assert any(e.logprob < e.top[0][1] for e in done.logprobs)


def test_only_those_who_ask(pair, engine, prompts):
    """Each request of a batch gets its own number of alternatives, or none at all."""
    batch, counts = prompts(6, seed=9), [None, 0, 3, None, 20, 1]
    plain = [c.token_ids for c in engine.generate(batch, replace(ASKED, logprobs=None), "large")]
    params = [replace(ASKED, logprobs=count) for count in counts]
    ids = [engine.submit(p, q, "large") for p, q in zip(batch, params, strict=True)]
    done = finish(engine, ids)
    assert [done[i].token_ids for i in ids] == plain
    for request, count in zip(ids, counts, strict=True):
        if count is None:
            assert done[request].logprobs is None
        else:
            check(pair, done[request], count)


def test_a_stream_ends_with_them(pair, engine):
    """Its last event carries the completion; a stop token has its number too."""
    params = replace(ASKED, stop_token_ids=(4,), logit_bias={4: 100.0}, min_tokens=5)
    *_, last = engine.stream([2, 3, 4], params, "small")
    assert last.completion.finish_reason == "stop" and len(last.completion.logprobs) == 6
    check(pair, last.completion, 4)


def test_a_number_belongs_to_its_token():
    """Another token at the place, or the same one by another model, has none."""
    log, numbers = DrawLog(), [TokenLogprobs(-float(i)) for i in range(6)]
    for place, model, token in [(5, 0, 1), (6, 0, 2), (7, 0, 3), (6, 1, 9), (7, 0, 3)]:
        log.add(Drawn(place, model, token, numbers[token % 6]))
    log.add(Drawn(6, 1, 9, numbers[4]))  # what was drawn at 7 stood on another token

    def entries(model, ids):
        return log.of([Step(0, 5, model, "", tuple(ids), "")])

    nothing = TokenLogprobs(None, ())
    assert entries("small", [1, 9, 3]) == (numbers[1], nothing, nothing)
    assert entries("large", [1, 9]) == (nothing, numbers[4])
    assert entries("large", [1, 8]) == (nothing, nothing)
