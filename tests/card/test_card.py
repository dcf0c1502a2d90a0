"""What the simulated card is for: it shows what would be wrong on a real one."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from triton.runtime import interpreter

from engine import Engine, EngineConfig, SamplingParams
from kernels.backends.triton import TritonBackend
from tests.card.backends import references
from tests.card.simulated import simulated_card

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="there is a GPU, no need to simulate"
)


@pytest.fixture
def card():
    """Nothing runs before the host waits for it."""
    with simulated_card(eagerness=0.0) as found:
        yield found


def pinned(*values):
    return torch.tensor(values).pin_memory()


def test_values_are_those_of_a_cpu(card):
    x = torch.arange(12, device="cuda").view(3, 4)
    y = (x.float() @ torch.ones(4, 2, device="cuda"))[1:, 0]
    assert x.is_cuda and y.device == torch.device("cuda:0")
    assert card.waits == [] and y.tolist() == [22.0, 38.0] and len(card.waits) == 1


def test_what_a_copy_has_yet_to_bring_is_spoilt(card):
    host = torch.zeros(2, dtype=torch.int64).pin_memory()
    host.copy_(torch.tensor([3, 4], device="cuda"), non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    assert host.tolist() != [3, 4]
    event.synchronize()
    assert host.tolist() == [3, 4] and card.events == 1


def test_host_memory_is_read_when_the_stream_comes_to_it(card):
    host, there = pinned(1, 2), torch.zeros(2, dtype=torch.int64, device="cuda")
    there.copy_(host, non_blocking=True)
    host.fill_(9)
    assert card.waits == [] and there.tolist() == [9, 9]


def test_memory_that_is_not_pinned_waits(card):
    torch.tensor([1, 2]).to("cuda")
    assert card.waits == ["for a copy to the card"]


def test_streams_wait_only_if_they_are_told(card):
    x = torch.zeros(2, device="cuda")
    torch.cuda.synchronize()
    found = []
    for told in (False, True):
        stream = torch.cuda.Stream()
        x.fill_(1.0 + told)
        if told:
            stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found.append((x + 0).tolist())
    assert found == [[0.0, 0.0], [2.0, 2.0]]


@pytest.mark.parametrize("told", [False, True])
def test_freed_memory_is_spoilt_for_who_did_not_say_that_it_reads(card, told):
    x, stream = torch.ones(2, device="cuda"), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y = x + 1
    if told:
        x.record_stream(stream)
    del x
    torch.cuda.current_stream().synchronize()
    with torch.cuda.stream(stream):
        assert (y.tolist() == [2.0, 2.0]) == told


def test_graphs_read_static_memory(card):
    static, graphs = torch.zeros(2, device="cuda"), []
    for factor in (2, 3):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            graphs.append((graph, (static + 1) * factor, factor))
    for value, (graph, kept, factor) in zip((5.0, 6.0), graphs, strict=True):
        static.fill_(value)
        graph.replay()
        assert kept.tolist() == [(value + 1) * factor] * 2


@pytest.mark.parametrize("shared", [False, True])
def test_graphs_of_a_pool_write_to_what_one_of_them_freed(card, shared):
    static, pools = torch.zeros(2, device="cuda"), [torch.cuda.graph_pool_handle() for _ in "ab"]
    graphs, seen = [], []
    for pool in (pools[0], pools[not shared]):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            between = static + 1
            seen.append(between.inner)
            kept = between * 2
        del between
        graphs.append((graph, kept))
    for graph, kept in graphs:
        graph.replay()
        assert kept.tolist() == [2.0, 2.0]
    assert seen[0].isnan().all() == shared and seen[1].tolist() == [1.0, 1.0]


def test_graphs_on_two_streams_are_not_one_after_the_other():
    """Steps of one come between those of the other: what they share comes out wrong at times."""
    found = set()
    for seed in range(8):
        with simulated_card(seed, 0.5):
            shared, graphs = torch.zeros(2, device="cuda"), []
            for value in (1.0, 2.0):
                graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
                with torch.cuda.graph(graph, stream=stream):
                    shared.fill_(value)
                    graphs.append((graph, stream, shared + 0))
            for graph, stream, _ in graphs:
                with torch.cuda.stream(stream):
                    graph.replay()
            torch.cuda.synchronize()
            found.add(tuple(kept.tolist()[0] for *_, kept in graphs))
    assert (1.0, 2.0) in found and len(found) > 1


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.tolist(),
        lambda x: x.sum().item(),
        lambda x: x.nonzero(),
        lambda x: x.cpu(),
        lambda x: x.copy_(torch.ones(2)),
        lambda _: torch.cuda.synchronize(),
        lambda x: x[x > 0],
    ],
)
def test_no_recording_waits(card, call):
    """PyTorch says why in the cause, and would take no other recording into the same pool."""
    x, pool = torch.ones(2, device="cuda"), torch.cuda.graph_pool_handle()
    with (
        pytest.raises(RuntimeError, match="previous error during capture") as found,
        torch.cuda.graph(torch.cuda.CUDAGraph(), pool=pool),
    ):
        call(x)
    assert "not permitted when stream is capturing" in str(found.value.__cause__)
    with (
        pytest.raises(RuntimeError, match="already recording to mempool_id"),
        torch.cuda.graph(torch.cuda.CUDAGraph(), pool=pool),
    ):
        pass


def test_devices_do_not_mix():
    with simulated_card(cards=2):
        here, there = (torch.ones(2, device=f"cuda:{i}") for i in range(2))
        with pytest.raises(RuntimeError, match=r"from \[device"):
            here + there
        with pytest.raises(RuntimeError, match="on the host, all else on cuda:0"):
            here + torch.ones(2)
        assert (here + torch.tensor(1.0)).tolist() == [2.0, 2.0]


@pytest.mark.parametrize("backends", [None, TritonBackend], ids=["references", "kernels"])
def test_an_engine_that_runs_past_the_references_is_told(backends):
    """Each card by itself: what the other one's references did does not count."""
    config = EngineConfig(
        arena_tokens=256,
        max_context=64,
        block_tokens=16,
        max_sequences=4,
        max_tick_tokens=16,
        graphs="off",
    )
    told = pytest.raises(AssertionError, match="an engine ran on cuda:0, where no reference")
    with simulated_card(cards=2), references() as given:
        for card, chosen in (("cuda:1", None), ("cuda:0", backends)):
            engine = Engine("tiny", device=card, config=config, backends=chosen)
            engine.generate(["1+1"], SamplingParams(max_tokens=1), "small")
        with told if backends else nullcontext():
            given.check()
        given.restart()


def test_it_leaves_nothing_behind():
    before = torch.Generator, interpreter.GridExecutor.__call__
    with simulated_card():
        assert torch.cuda.is_available() and torch.ones(1, device="cuda").is_cuda
    assert not torch.cuda.is_available()
    assert (torch.Generator, interpreter.GridExecutor.__call__) == before
    with pytest.raises((RuntimeError, AssertionError)):
        torch.ones(1, device="cuda")
