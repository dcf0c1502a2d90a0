"""One body of tests for every way in which a tick can run, as ways.py lists them."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import pytest
import torch

from engine import EngineConfig, SamplingParams, SteerError
from engine.device.graphs import GraphCounts, Graphs
from engine.device.memory_budget import weight_bytes, workspace_bytes
from engine.execution.draw_key import draw_key
from engine.models.passes import Batch
from engine.requests.request_state import RequestState
from engine.routing.policies import Always, Call
from kernels import ops
from kernels.backends.triton import TritonBackend
from tests.engine.late_ticks import LateQueue, launched, route_all
from tests.engine.ways import (
    GPU,
    KERNELS,
    LARGE,
    ROLES,
    SAMPLED,
    SMALL,
    WAYS,
    build,
    schedule,
    written,
)


@pytest.fixture(scope="module")
def kit(make_pair, tmp_path_factory):
    """Heads of 16, which the kernels take."""
    return make_pair(tmp_path_factory.mktemp("device"), SMALL, LARGE, seed=5)


def said(engine, model, texts):
    """Logits of every row of ragged texts in one pass."""
    shape, tokens = engine.shapes[model], engine.config.block_tokens
    layout = engine.arena.layout(shape, model, tokens)
    arena = engine.arena.rows(shape, model)
    width = -(-max(map(len, texts)) // tokens)
    blocks = torch.arange(len(texts) * width).flip(0).view(len(texts), width)
    places = [torch.arange(len(t)) for t in texts]
    slots = [b[p // tokens] * tokens + p % tokens for b, p in zip(blocks, places, strict=True)]
    lengths = torch.tensor([len(t) for t in texts])
    starts = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    plan = ops.AttentionPlan.build(layout, starts, lengths, blocks, torch.cat(slots))
    device = arena.device
    plan = replace(
        plan,
        table=plan.table.to(device),
        starts=plan.starts.to(device),
        contexts=plan.contexts.to(device),
        slots=plan.slots.to(device),
    )
    rows = torch.tensor([i for t in texts for i in t])
    numbers = (part.int().to(device) for part in (rows, torch.cat(places), torch.arange(len(rows))))
    tokens, positions, sampled = numbers
    decoder = engine.lanes[model].runner.decoder
    found = decoder.forward(Batch(tokens, positions, sampled, plan), arena)
    return found.cpu().split(lengths.tolist())


@pytest.mark.parametrize("way", [*WAYS, KERNELS])
@pytest.mark.parametrize("model", [0, 1])
def test_fp32_logits_are_those_of_transformers(kit, way, model, prompts):
    texts = prompts(min(way.prompts, 5), seed=1, longest=way.tokens + 6)
    found = said(build(kit, way), model, texts)
    for text, ours in zip(texts, found, strict=True):
        theirs = kit.oracles[ROLES[model]].logits(text)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("way", [*WAYS, KERNELS])
@pytest.mark.parametrize("model", [0, 1])
def test_bf16_is_as_near_as_transformers_own(kit, way, model, prompts):
    """By the RMS error against fp32; the likeliest token is the same where that leads clearly."""
    texts, oracle = (
        prompts(min(way.prompts, 8), seed=2, longest=way.tokens + 6),
        kit.oracles[ROLES[model]].model,
    )
    found = torch.cat(said(build(kit, way, "bfloat16"), model, texts))
    exact = torch.cat([kit.oracles[ROLES[model]].logits(t) for t in texts])
    # The weights of both are rounded to bf16 first, and the model's own in fp32 is the measure.
    rounded = type(oracle)(oracle.config).to(torch.bfloat16).eval()
    rounded.load_state_dict(oracle.state_dict())
    with torch.no_grad():
        theirs = torch.cat([rounded(torch.tensor([t])).logits[0].float() for t in texts])
    error, allowed = ((x - exact).pow(2).mean().sqrt() for x in (found, theirs))
    # The interpreter cuts bf16 off where a GPU rounds.
    assert error <= (2.5 if way.name == "kernels" else 1.25) * allowed
    top = exact.topk(2).values
    clear = (top[:, 0] - top[:, 1]) > 8 * max(error, allowed)
    assert clear.any() and torch.equal(found.argmax(-1)[clear], exact.argmax(-1)[clear])


@pytest.mark.parametrize("way", [*WAYS, KERNELS])
@pytest.mark.parametrize("reads", [False, True])
def test_handoffs(kit, way, reads, prompts, delimiters, ties):
    """The text of a forced schedule, each token what its model says of the whole prefix."""
    batch = prompts(way.prompts, seed=4, longest=40 if way.tokens > 10 else 9)
    policy = Call(lambda boundary: schedule(boundary.position), reads=reads)
    engine = build(kit, way, delimiters=delimiters, check_every=1)
    for done in engine.generate(batch, SamplingParams(max_tokens=way.tokens), policy):
        kit.check(done, schedule, ties)
    counts = [engine.graph_counts[role] for role in ROLES]
    if way.config["graphs"] == "on":
        assert all(c.captures > 0 for c in counts) and sum(c.replays for c in counts) > 0
        assert way.name == "kernels" or all(c.replays > 2 * c.captures for c in counts)
    else:
        assert not any(c.captures or c.misses or c.replays for c in counts)
    assert all(c.misses == c.captures and c.eager >= c.misses for c in counts if c.captures)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("role", ROLES)
def test_graphs_change_no_token(kit, way, role, prompts):
    """Nor a log-probability: at the same padded size the same work is done."""
    if way.config["graphs"] == "off":
        pytest.skip("the other side of the comparison")
    batch, found = prompts(10, seed=6), []
    for graphs in (True, False):
        engine = build(kit, way)
        if not graphs:
            for lane in engine.lanes:
                lane.runner.graphs = Graphs(None)
        found.append(written(engine, batch, 24, role))
        assert (engine.graph_counts[role].replays > 10) == graphs
    assert found[0] == found[1]


@pytest.mark.parametrize("way", WAYS)
def test_graphs_are_recorded_before_there_are_requests(kit, way, prompts):
    """On padding alone, each size in both kinds; then no decode records one, no token changes."""
    if way.config["graphs"] == "off":
        pytest.skip("nothing is recorded")
    batch, found = prompts(10, seed=6), []
    for most in (None, 5, 32):
        engine = build(kit, way, graph_rows=0)  # spans are recorded as they come
        counts = [engine.graph_counts[role] for role in ROLES]
        if most:
            engine.warm_up(most)
            sizes = {5: 4, 32: 6}[most]  # 1, 2, 4, 8, and so on
            assert counts == [GraphCounts(captures=2 * sizes)] * 2
        found.append(written(engine, batch, 24))
    assert counts[0].misses == 0 and counts[0].replays > 10 and counts[0].captures == 12
    assert found[1] == found[0] == found[2]


def test_who_may_warm_up(kit, prompts):
    engine = build(kit, WAYS[1].values[0])
    for most in (0, 33):
        with pytest.raises(SteerError, match=f"from 1 to 32 sequences, got {most}"):
            engine.warm_up(most)
    engine.submit(prompts(1, seed=1)[0], SamplingParams(max_tokens=2), "small")
    with pytest.raises(SteerError, match=r"warm_up\(\) with 1 requests: call it before"):
        engine.warm_up()


@pytest.mark.skipif(GPU, reason="the interpreter is chosen before kernels are imported")
def test_kernels_write_what_the_references_write(kit, prompts):
    """Draws, penalties, biases and log-probabilities, in whole requests."""
    batch, reference, found = prompts(5, seed=7, longest=6), WAYS[0].values[0], []
    for way in (reference, replace(reference, name="kernels")):
        found.append(written(build(kit, way), batch, 4))
    assert [tokens for tokens, _ in found[0]] == [tokens for tokens, _ in found[1]]


@pytest.mark.parametrize(
    "where",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not GPU, reason="needs an NVIDIA GPU")],
        ),
    ],
)
def test_a_key_draws_the_same_token_everywhere(where):
    """Whatever the filters, the kernels and the reference take the same id."""
    if where == "cpu" and GPU:
        pytest.skip("the interpreter is chosen before kernels are imported")
    rows, draw = 24, torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(rows, 300, generator=draw)
    columns = {
        "temperature": [0.0, 0.5, 1.0, 1.7] * 6,
        "top_k": [0, 7, 0, 40, 1, 0] * 4,
        "top_p": [1.0, 1.0, 0.7] * 8,
        "min_p": [0.0, 0.05] * 12,
        "key": list(range(rows)),
        "counter": [[i % 3, 10 + i, i % 2] for i in range(rows)],
    }
    expected = ops.CpuBackend().sample(logits, 290, ops.DrawRows.on("cpu", **columns))
    device = torch.device(where)
    backend = TritonBackend(device) if where == "cpu" else ops.backend_for(device)
    found = backend.sample(logits.to(where), 290, ops.DrawRows.on(where, **columns)).cpu()
    assert torch.equal(found, expected) and len(set(found.tolist())) > 10


@pytest.mark.parametrize("way", WAYS)
def test_a_tick_ahead(kit, way, prompts):
    """Tokens that the host has not seen are found on the device, also where they are penalised."""
    batch, engine = prompts(5, seed=8), build(kit, way)
    expected = written(build(kit, way), batch, 12)
    scheduler, runner = engine.scheduler, engine.lanes[0].runner
    if way.device == "cpu":
        runner.queue = LateQueue()
    requests = {}
    for i, prompt in enumerate(batch):
        params = SamplingParams(max_tokens=12, seed=i, **SAMPLED[i])
        request = scheduler.add(prompt, max_tokens=12)
        key = draw_key(i, prompt)
        requests[request] = RequestState(params, i, Always("small"), len(prompt), draw_key=key)
    plans, ticks = [scheduler.buffers(0, index) for index in range(2)], deque()
    previous = stale = None
    finished, drawn, unknown = route_all(scheduler), {}, []
    while len(finished) < len(batch):
        while len(ticks) < 2:
            plan = plans[bool(ticks) and ticks[0][0] is plans[0]]
            if not scheduler.plan(0, bool(ticks)):
                break
            pending, names_unknown = launched(runner, plan, requests, previous, stale)
            assert way.device != "cpu" or not pending.done()
            unknown.append(names_unknown)
            ticks.append((plan, pending))
            previous, stale = pending, previous
        plan, pending = ticks[0]
        result, stands = pending.result(), scheduler.standing(0)
        for row, request in enumerate(plan.ids[: plan.sequences].tolist()):
            if stands[row] and request in result.drawn:
                (draw,) = result.drawn[request]
                drawn[request, draw.position] = draw
        scheduler.commit(0, result.tokens)
        ticks.popleft()
        finished |= route_all(scheduler)
    assert sum(unknown) >= 8
    for request, prompt, (tokens, logprobs) in zip(requests, batch, expected, strict=True):
        assert finished[request] == [*prompt, *tokens]
        for place, entry in enumerate(logprobs or (), len(prompt)):
            own = drawn[request, place]
            assert own.token == finished[request][place]
            assert own.logprobs.logprob == pytest.approx(entry.logprob, abs=1e-5)
            assert [token for token, _ in own.logprobs.top] == [token for token, _ in entry.top]


def test_out_of_memory(kit, prompts, monkeypatch):
    """Once: the tick runs again. For good: its requests end, the caller and the engine go on."""
    (way, *_), batch = WAYS[0].values, prompts(3, seed=9)
    engine, params = build(kit, way), SamplingParams(max_tokens=6)
    expected = [c.token_ids for c in engine.generate(batch, params, "large")]
    decoder = engine.lanes[1].runner.decoder
    statistics, calls = decoder.signals, []

    def short(*arguments):
        calls.append(1)
        if len(calls) == 3 or lasting:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return statistics(*arguments)

    monkeypatch.setattr(decoder, "signals", short)
    lasting = False
    assert [c.token_ids for c in engine.generate(batch, params, "large")] == expected
    lasting = True
    assert {c.finish_reason for c in engine.generate(batch, params, "large")} == {"error"}
    lasting = False
    assert [c.token_ids for c in engine.generate(batch, params, "large")] == expected


def test_rooms_of_a_pair(kit):
    """Weights to the byte; workspaces grow with ticks and batches."""
    engine = build(kit, WAYS[0].values[0])
    for lane, shape in zip(engine.lanes, engine.shapes, strict=True):
        tensors = {t.data_ptr(): t for t in lane.runner.decoder.tensors()}.values()
        assert weight_bytes(shape, 4) == sum(t.numel() * 4 for t in tensors)
        config = EngineConfig(max_sequences=8, max_tick_tokens=64)
        rooms = [
            workspace_bytes(shape, replace(config, **change), 2)
            for change in ({}, {"max_tick_tokens": 4096}, {"max_sequences": 60})
        ]
        assert rooms[0] < min(rooms[1:])
