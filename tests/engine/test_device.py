"""One body of tests for every way in which a tick can run: the references, the references behind
recorded work, the kernels that are compiled for a CPU, the Triton kernels in their interpreter, and
a GPU where there is one."""

from __future__ import annotations

import math
import zlib
from collections import deque
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engine import Engine, EngineConfig, SamplingParams, SteerError
from engine.cli import main
from engine.device.device_queue import HostQueue
from engine.device.devices import choose_devices, choose_dtype
from engine.device.graphs import GraphCounts, Graphs
from engine.device.memory_budget import CardMemory, arena_slabs, weight_bytes, workspace_bytes
from engine.models.passes import Batch
from engine.requests.request_state import RequestState
from engine.routing.policies import Always, Call
from kernels import ops
from kernels.backends.triton import TritonBackend

GPU = torch.cuda.is_available()
SMALL = {"hidden": 48, "layers": 2, "heads": 3, "kv_heads": 1, "ff": 56, "tied": True}
LARGE = {"hidden": 96, "layers": 2, "heads": 6, "kv_heads": 2, "ff": 72, "vocab": 48}
ROLES = ("small", "large")
VOCABULARY = 38


@dataclass(frozen=True)
class Way:
    """How to run, and how much of it the time allows."""

    name: str
    config: dict
    prompts: int
    tokens: int

    @property
    def device(self):
        return "cuda" if self.name.startswith("cuda") else "cpu"

    @property
    def backends(self):
        """None is the engine's own choice."""
        return TritonBackend if self.name == "kernels" else None


def cuda(name, **config):
    marks = [pytest.mark.gpu, pytest.mark.skipif(not GPU, reason="needs an NVIDIA GPU")]
    return pytest.param(Way(name, config, 24, 48), id=name, marks=marks)


BY_OPS = {"cpu_kernels": False}
WAYS = [
    pytest.param(Way("reference", {"graphs": "off", **BY_OPS}, 12, 48), id="reference"),
    pytest.param(Way("recorded", {"graphs": "on", **BY_OPS}, 12, 48), id="recorded"),
    pytest.param(Way("compiled", {"graphs": "on"}, 12, 48), id="compiled"),
    cuda("cuda", graphs="off"),
    cuda("cuda, graphs", graphs="on"),
]
KERNELS = pytest.param(
    Way("kernels", {"graphs": "on"}, 2, 6),
    id="kernels",
    marks=pytest.mark.skipif(GPU, reason="the interpreter is chosen before kernels are imported"),
)


@pytest.fixture(scope="module")
def kit(make_pair, tmp_path_factory):
    """Heads of 16, which the kernels take."""
    return make_pair(tmp_path_factory.mktemp("device"), SMALL, LARGE, seed=5)


def build(kit, way, dtype="float32", **config):
    """An engine that runs so; memory that was never written holds NaN."""
    defaults = {"block_tokens": 4, "arena_tokens": 2048, "max_context": 128, "max_sequences": 32}
    small, large = kit.folders
    engine = Engine(
        "custom",
        small=small,
        large=large,
        dtype=dtype,
        device=way.device,
        config=EngineConfig(**{**defaults, **way.config, **config}),
        backends=way.backends,
    )
    for model, shape in enumerate(engine.shapes):
        engine.arena.rows(shape, model).fill_(math.nan)
    settle(way)
    return engine


def settle(way):
    """Until what was written here is there for the lanes' streams too."""
    if way.device == "cuda":
        torch.cuda.synchronize()


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


def schedule(position):
    return "large" if zlib.crc32(f"3/{position}".encode()) % 2 else "small"


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


SAMPLED = [
    {"temperature": 0.0},
    {"temperature": 0.9, "top_k": 5},
    {"temperature": 1.3, "top_p": 0.8, "logprobs": 2},
    {"temperature": 0.0, "repetition_penalty": 1.4, "presence_penalty": 0.5},
    {"temperature": 1.0, "frequency_penalty": 0.7, "logit_bias": {3: 2.0}, "min_tokens": 4},
]


def written(engine, batch, tokens, role="small"):
    ids = [
        engine.submit(p, SamplingParams(max_tokens=tokens, seed=i, **SAMPLED[i % 5]), role)
        for i, p in enumerate(batch)
    ]
    done = {}
    while len(done) < len(ids):
        done |= {c.request_id: c for c in engine.step()}
    return [(done[i].token_ids, done[i].logprobs) for i in ids]


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
        "seed": list(range(rows)),
        "counter": [[i % 3, 10 + i, i % 2, 0] for i in range(rows)],
    }
    expected = ops.CpuBackend().sample(logits, 290, ops.DrawRows.on("cpu", **columns))
    device = torch.device(where)
    backend = TritonBackend(device) if where == "cpu" else ops.backend_for(device)
    found = backend.sample(logits.to(where), 290, ops.DrawRows.on(where, **columns)).cpu()
    assert torch.equal(found, expected) and len(set(found.tolist())) > 10


class LateQueue(HostQueue):
    """Runs nothing before the host waits for it."""

    def __init__(self):
        self.waiting = []

    def submit(self, work):
        self.waiting.append(work)
        last = len(self.waiting)

        def wait():
            for i in range(last):
                if self.waiting[i] is not None:
                    self.waiting[i], late = None, self.waiting[i]
                    late()

        done = lambda: self.waiting[last - 1] is None  # noqa: E731
        return SimpleNamespace(done=done, wait=wait)


def copied(plan):
    """A plan whose buffers are nobody else's."""
    names = (
        "sequences",
        "rows",
        "copied",
        "copies",
        "tokens",
        "positions",
        "slots",
        "starts",
        "contexts",
        "samples",
        "attempts",
        "blocks",
        "ids",
    )
    kept = {name: np.copy(getattr(plan, name)) for name in names}
    scalars = {name: int(kept[name]) for name in ("sequences", "rows", "copied")}
    return SimpleNamespace(**{**kept, **scalars})


def route_all(scheduler):
    """Let the small model write every step; the tokens of what is finished, by id."""
    finished = {}
    for kind, request, _ in scheduler.take_events():
        if kind == 0:
            scheduler.route(request, 0)
        else:
            finished[request] = scheduler.sequence(request).tokens.tolist()
    return finished


def launched(runner, plan, requests, previous, stale):
    """Start a plan; one that names unknown tokens is refused without the tick that draws them."""
    plan = copied(plan)
    unknown = bool((plan.tokens[: plan.rows] < 0).any())
    for other in (None, stale) if unknown else ():
        with pytest.raises(ValueError, match="previous must be this lane's last tick"):
            runner.launch(plan, requests, other)
    pending = runner.launch(plan, requests, previous)
    for name in ("tokens", "contexts", "blocks", "slots"):  # the plan's buffers are free again
        getattr(plan, name)[:] = 0
    return pending, unknown


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
        requests[request] = RequestState(params, i, Always("small"), len(prompt))
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
                draw = result.drawn[request]
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
    statistics, calls = decoder.statistics, []

    def short(*arguments):
        calls.append(1)
        if len(calls) == 3 or lasting:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return statistics(*arguments)

    monkeypatch.setattr(decoder, "statistics", short)
    lasting = False
    assert [c.token_ids for c in engine.generate(batch, params, "large")] == expected
    lasting = True
    assert {c.finish_reason for c in engine.generate(batch, params, "large")} == {"error"}
    lasting = False
    assert [c.token_ids for c in engine.generate(batch, params, "large")] == expected


GIB = 2**30


@pytest.mark.parametrize(
    ("free", "asked", "slabs"), [(80, 0, 44), (80, 10, 10), (80, 44, 44), (40, 0, 4), (70, 0, 34)]
)
def test_the_arena_takes_what_is_left(free, asked, slabs):
    """Of 80 GiB a quarter stays free, 16 GiB are needed beside the arena."""
    card = CardMemory("a card", 80 * GIB, free * GIB, 0.75)
    needed = {"weights": 14 * GIB, "workspaces": 2 * GIB}
    assert arena_slabs(card, needed, GIB, 256, asked) == slabs


@pytest.mark.parametrize(
    ("free", "asked", "says"),
    [
        (
            39,
            0,
            r"20.00 GiB are needed \(14.00 GiB for weights \+ 2.00 GiB for workspaces \+ 4.00 "
            r"GiB for an arena of 1024 tokens\), 19.00 of 39.00 GiB free may be used "
            r"\(memory_fraction 0.75\): free the card, take a smaller pair or dtype",
        ),
        (80, 61, "77.00 GiB are needed .*arena of 15616 tokens.*: arena_tokens=11264 would fit"),
        (12, 0, "0.00 of 12.00 GiB free may be used"),
    ],
)
def test_what_does_not_fit(free, asked, says):
    card = CardMemory("a card", 80 * GIB, free * GIB, 0.75)
    needed = {"weights": 14 * GIB, "workspaces": 2 * GIB}
    with pytest.raises(SteerError, match=f"a card: .*{says}"):
        arena_slabs(card, needed, GIB, 256, asked)


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


@pytest.mark.skipif(GPU, reason="asks for a GPU where there is none")
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_no_gpu(name):
    with pytest.raises(SteerError, match=f"device {name}: PyTorch sees no NVIDIA GPU here"):
        Engine("tiny", device=name)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("gpu",), "unknown device 'gpu'; known: auto, cpu, cuda, cuda:N"),
        (("cuda:x",), "unknown device 'cuda:x'"),
        (("auto", ("cpu",)), "devices must name one for each of the two models"),
        (("auto", "cpu"), "devices must name one for each of the two models"),
        (("cuda:7",), "device cuda:7: there are 2 GPUs, numbered from 0"),
        (("auto", ("cpu", "cuda:1")), "devices must be of one kind, got cpu and cuda:1"),
    ],
)
def test_bad_devices(arguments, says, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SteerError, match=says):
        choose_devices(*arguments)


def test_the_command_takes_a_device_for_each_model(capsys):
    said = []
    for flag in ("--device=cpu", "--devices=cpu, cpu"):
        assert main(["generate", "47+36*7-15?", flag, "--max-tokens=6", "--seed=1"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and "rows:" in said[0]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--devices=cpu"], "devices must name one for each of the two models, got ['cpu']"),
        (["--devices=cpu,tpu"], "unknown device 'tpu'; known: auto, cpu, cuda, cuda:N"),
        (["--devices=cpu,cpu", "--device=cpu"], "leave --device out"),
    ],
)
def test_bad_devices_of_the_command(flags, says, capsys):
    assert main(["generate", "4+3?", *flags]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ") and says in told.err and told.err.count("\n") == 1


def test_dtypes_of_cards(monkeypatch):
    """What a card lacks is refused by name, and not chosen."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "an old card")
    card, host = torch.device("cuda", 0), torch.device("cpu")
    assert choose_dtype("auto", (host, host)) == torch.float32
    for capability, chosen in (((9, 0), torch.bfloat16), ((7, 5), torch.float32)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert choose_dtype("auto", (card, card)) == chosen
    with pytest.raises(SteerError, match=r"cuda:0 \(an old card\) has no bfloat16; take float32"):
        choose_dtype("bfloat16", (card, card))
    with pytest.raises(SteerError, match="unknown dtype 'half'"):
        choose_dtype("half", (card, card))


@pytest.mark.parametrize(
    ("field", "value"), [("graphs", "yes"), ("memory_fraction", 0), ("memory_fraction", 1.5)]
)
def test_bad_settings(field, value):
    with pytest.raises(SteerError, match=field):
        EngineConfig(**{field: value})
