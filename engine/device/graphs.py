"""Work that is recorded once and replayed: CUDA graphs, and a stand-in on a CPU.

Recorded work reads static buffers only. The outputs of a replay are overwritten by the next replay
of any graph of the same lane, so they must be read, or copied on the same stream, before that.
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
    """Ticks of one lane by how they ran, and recorded graphs.

    replays: ticks that replayed a graph.
    eager: ticks without a graph.
    misses: eager ticks after which a graph was to be recorded.
    captures: recorded graphs, those prepared before any tick included.
    refused: graphs given up because memory ran out when they were recorded or replayed.
    """

    replays: int = 0
    eager: int = 0
    misses: int = 0
    captures: int = 0
    refused: int = 0


class Recorder(Protocol):
    """Turns work into a function that repeats it."""

    def record(self, work: Work) -> Work:
        """Record ``work``, which must have run on this lane before: all it needs is compiled."""


class HostRecorder:
    """Runs the work again into its first outputs, and fills all other graphs' outputs with NaN.

    A CUDA pool that is shared by graphs overwrites them in the same way.
    """

    def __init__(self) -> None:
        self._pool: list[Tensor] = []

    def record(self, work: Work) -> Work:
        kept: list[Tensor] = []

        def replay() -> Outputs:
            outputs = work()
            for tensor in self._pool:
                tensor.fill_(torch.nan if tensor.is_floating_point() else 1)
            if not kept:
                kept.extend(torch.empty_like(tensor) for tensor in outputs)
                self._pool.extend(kept)
            for mine, tensor in zip(kept, outputs, strict=True):
                mine.copy_(tensor)
            return tuple(kept)

        return replay


_RECORDING = threading.Lock()  # no thread may synchronise a GPU while a graph is recorded on it


class CudaRecorder:
    """CUDA graphs of one lane, in one memory pool: replays of a lane never overlap.

    A graph lives as long as its recorder, even if its recording failed or it is not replayed any
    more: when the first graph dies, PyTorch frees cuBLAS's workspace on the lane's stream, and all
    other graphs of the lane write there.
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
        # "thread_local": calls of other engines' threads must not break the recording.
        with (
            _RECORDING,
            torch.cuda.graph(
                graph, pool=self._pool, stream=self._queue.stream, capture_error_mode="thread_local"
            ),
        ):
            return work()

    def _mend_pool(self) -> None:
        """Take a new pool if a failed recording left the old one open.

        If CUDA itself aborts a recording, PyTorch keeps the pool open and refuses further
        recordings into it. If the recording was ended properly, the pool and its memory are kept.
        """
        end = getattr(torch._C, "_cuda_endAllocateToPool", None)
        if end is not None:
            try:
                end(self._queue.device.index, self._pool)
            except RuntimeError:  # the recording was ended properly
                return
        self._pool = torch.cuda.graph_pool_handle()


class Graphs:
    """The graphs of one lane by key. The first run of a key is eager."""

    def __init__(self, recorder: Recorder | None) -> None:
        """``recorder``: None runs everything eagerly."""
        self._recorder = recorder
        self._replays: dict[Hashable, Work | None] = {}
        self.counts = GraphCounts()

    def run(self, key: Hashable, work: Work) -> Outputs:
        """Run work by its graph, if any. ``key`` names all that it depends on except buffers."""
        replayed = self._replay(key)
        if replayed is not None:
            return replayed
        outputs = self.run_eagerly(work)
        if self._recorder is not None and key not in self._replays:
            self.counts.misses += 1
            self._replays[key] = self._record(work)
        return outputs

    def prepare(self, key: Hashable, work: Work) -> None:
        """Run work once and record it, unless it is recorded. Not counted as a tick."""
        if self._replays.get(key) is not None:
            return
        try:
            work()
        except RuntimeError as error:  # at the first such tick memory may suffice
            if not is_out_of_memory(error):
                raise
            self.counts.refused += 1
            return
        if self._recorder is not None:
            self._replays[key] = self._record(work)

    def run_eagerly(self, work: Work) -> Outputs:
        """Run work without a graph."""
        self.counts.eager += 1
        return work()

    def _replay(self, key: Hashable) -> Outputs | None:
        """The outputs of a replay; None without a graph, and if memory to launch it is out."""
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
        except RuntimeError as error:  # the cause may be the context of a failed recording's error
            if not is_out_of_memory(error) and not is_out_of_memory(error.__context__):
                raise
            self.counts.refused += 1
            return None
        self.counts.captures += 1
        return replay
