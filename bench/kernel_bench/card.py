"""A card in this run: its measured limits, how times are taken on it, whether it still answers."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import triton

from bench.stats import percentiles

Call = Callable[[], object]
_GIB = 2**30
_PRODUCT = 8192  # rows and columns
_QUICK = 2**16, 32, 2  # bytes, rows and columns, nodes


class CardLostError(RuntimeError):
    """The card executes nothing more in this process."""


@triton.jit
def _empty_kernel():  # type: ignore[no-untyped-def]
    pass


@dataclass(frozen=True)
class Card:
    """The card's limits, measured: bytes and FLOPs per second; the node in microseconds."""

    gpu: str
    clocks: str
    copy_bandwidth: float
    read_bandwidth: float
    peak_flops: float
    node_us: float
    l2_bytes: int


def graph_times(calls: Sequence[Call], replays: int) -> list[float]:
    """Microseconds per call, one figure for each replay of a graph of all ``calls``."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())  # which may still be making the arguments
    with torch.cuda.stream(stream):
        for call in calls:  # compile and allocate outside of the capture
            call()
    stream.synchronize()
    graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, stream=stream):
            for call in calls:
                call()
    finally:  # a broken recording does not restore the current stream
        torch.cuda.set_stream(current)
    for _ in range(3):
        graph.replay()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(replays + 1)]
    events[0].record()
    for event in events[1:]:
        graph.replay()
        event.record()
    torch.cuda.synchronize()
    spans = [a.elapsed_time(b) for a, b in pairwise(events)]
    return [1e3 * span / len(calls) for span in spans]


class CardTimer:
    """How kernels are timed on a card, and whether it answers."""

    def times(self, calls: Sequence[Call], replays: int) -> list[float]:
        """As ``graph_times``."""
        return graph_times(calls, replays)

    def check(self) -> None:
        """As ``check_card``."""
        check_card()


def _median(call: Call, calls: int, replays: int = 10) -> float:
    return percentiles(graph_times([call] * calls, replays))[1]


def calibrate(quick: bool = False) -> Card:
    """Measure the card: streaming copy and read, dense bf16 products, an empty graph node.

    ``quick``: at sizes too small to be meaningful, only to see that it works.
    """
    copied, size, nodes = _QUICK if quick else (_GIB, _PRODUCT, 200)
    source = torch.ones(copied // 4, device="cuda")
    target = torch.empty_like(source)
    copy_us = _median(lambda: target.copy_(source), 5)
    read_us = _median(lambda: source.sum(), 5)
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product_us = _median(lambda: a @ b, 5)
    properties = torch.cuda.get_device_properties(0)
    return Card(
        gpu=properties.name,
        clocks=_clocks(),
        copy_bandwidth=1e6 * 2 * copied / copy_us,
        read_bandwidth=1e6 * copied / read_us,
        peak_flops=1e6 * 2 * size**3 / product_us,
        node_us=_median(lambda: _empty_kernel[(1,)](), nodes),
        l2_bytes=properties.L2_cache_size,
    )


def _clocks() -> str:
    """SM and memory clock, if the driver's tool says."""
    query = ["nvidia-smi", "-i", "0", "--query-gpu=clocks.sm,clocks.mem", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()


def check_card() -> None:
    """CardLostError if an error is permanent, as after an illegal address.

    Out of memory, or a refused launch, is not: the next call can succeed.
    """
    if not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        raise CardLostError(f"the card answers no more: {first_line(error)}") from error


def card_lost() -> bool:
    """Whether the card has a permanent error."""
    try:
        check_card()
    except CardLostError:
        return True
    return False


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its name."""
    return (str(error).strip() or repr(error)).splitlines()[0]
