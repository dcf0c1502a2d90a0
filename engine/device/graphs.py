"""Work that is recorded once and replayed: CUDA graphs, and a stand-in on a CPU.

Recorded work reads static buffers only. What a replay gives is overwritten by the next replay of
any graph of the same lane, so it must be read, or copied on the same stream, before that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.device.device_queue import CudaQueue
from engine.out_of_memory import is_out_of_memory

Outputs = tuple[Tensor, ...]
Work = Callable[[], Outputs]


@dataclass
class GraphCounts:
    """Ticks of one lane by how they ran, and graphs recorded.

    eager: without a graph, ``misses`` included: those for which one was yet to be recorded.
    captures: graphs recorded, those that were prepared before any tick included.
    refused: graphs for which there was no memory, to record or to replay them; they are given up.
    """

    replays: int = 0
    eager: int = 0
    misses: int = 0
    captures: int = 0
    refused: int = 0


class Recorder(Protocol):
    """Turns work into a function that does it again."""

    def record(self, work: Work) -> Work:
        """``work`` has run on this lane just before, with all that it compiles and loads."""


class HostRecorder:
    """Runs work again, into the buffers of the first time; like a GPU's pool, spoils all others."""

    def __init__(self) -> None:
        self._pool: list[Tensor] = []

    def record(self, work: Work) -> Work:
        kept: list[Tensor] = []

        def replay() -> Outputs:
            made = work()
            for tensor in self._pool:
                tensor.fill_(torch.nan if tensor.is_floating_point() else 1)
            if not kept:
                kept.extend(torch.empty_like(tensor) for tensor in made)
                self._pool.extend(kept)
            for mine, tensor in zip(kept, made, strict=True):
                mine.copy_(tensor)
            return tuple(kept)

        return replay


_RECORDING = threading.Lock()  # CUDA lets nobody wait for a card while a graph is recorded on it


class CudaRecorder:
    """CUDA graphs of one lane, in one memory pool: replays of a lane never overlap.

    A graph lives as long as its recorder, also one that broke off or is not replayed any more:
    with the first graph that dies, Torch frees the workspace that cuBLAS has on the lane's stream,
    and all other graphs of the lane write there.
    """

    def __init__(self, queue: CudaQueue) -> None:
        self._queue = queue
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def record(self, work: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        self._graphs.append(graph)
        try:
            outputs = self._capture(graph, work)
        except BaseException:
            self._mend_pool()
            raise

        def replay() -> Outputs:
            graph.replay()
            return outputs

        return replay

    def _capture(self, graph: torch.cuda.CUDAGraph, work: Work) -> Outputs:
        # Beside other engines' threads, whose calls must not spoil the recording.
        with (
            _RECORDING,
            torch.cuda.graph(
                graph, pool=self._pool, stream=self._queue.stream, capture_error_mode="thread_local"
            ),
        ):
            return work()

    def _mend_pool(self) -> None:
        """A recording that CUDA itself breaks off leaves its pool as if it went on, and Torch would
        refuse every other one into it: they get another. One that broke off in order keeps its
        pool, and what that has of memory."""
        end = getattr(torch._C, "_cuda_endAllocateToPool", None)
        if end is not None:
            try:
                end(self._queue.device.index, self._pool)
            except RuntimeError:  # it was ended in order
                return
        self._pool = torch.cuda.graph_pool_handle()


class Graphs:
    """The graphs of one lane by what they are for. The first time runs without one."""

    def __init__(self, recorder: Recorder | None) -> None:
        """``recorder``: None runs everything eagerly."""
        self._recorder = recorder
        self._replays: dict[Hashable, Work | None] = {}
        self.counts = GraphCounts()

    def run(self, key: Hashable, work: Work) -> Outputs:
        """Work that may be replayed. ``key`` names everything that it depends on but buffers."""
        replayed = self._replay(key)
        if replayed is not None:
            return replayed
        outputs = self.run_eagerly(work)
        if self._recorder is not None and key not in self._replays:
            self.counts.misses += 1
            self._replays[key] = self._record(work)
        return outputs

    def prepare(self, key: Hashable, work: Work) -> None:
        """Run work once, and record it if it is not. No tick: nothing but the graph is counted."""
        if self._replays.get(key) is not None:
            return
        try:
            work()
        except RuntimeError as error:  # when such a tick comes there may be room
            if not is_out_of_memory(error):
                raise
            self.counts.refused += 1
            return
        if self._recorder is not None:
            self._replays[key] = self._record(work)

    def run_eagerly(self, work: Work) -> Outputs:
        """Work that is never recorded."""
        self.counts.eager += 1
        return work()

    def _replay(self, key: Hashable) -> Outputs | None:
        """None without a graph, and where the device has no room to start one."""
        replay = self._replays.get(key)
        if replay is None:
            return None
        try:
            outputs = replay()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self.counts.refused += 1
            self._replays[key] = None
            return None
        self.counts.replays += 1
        return outputs

    def _record(self, work: Work) -> Work | None:
        assert self._recorder is not None
        try:
            replay = self._recorder.record(work)
        except RuntimeError as error:  # a recording that breaks off hides why behind its own error
            if not is_out_of_memory(error) and not is_out_of_memory(error.__context__):
                raise
            self.counts.refused += 1
            return None
        self.counts.captures += 1
        return replay
