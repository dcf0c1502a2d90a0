"""A card that is simulated: streams, events and graphs as CUDA has them, on a CPU.

What is put on a stream runs later: when the host waits for it, or when chance has it. Each stream
keeps its order; against each other they run in any order that their events allow.
"""

from __future__ import annotations

import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Step = Callable[[], Any]
_SPOILT = 0x7FF8  # NaN in every floating type; a whole number far out of any range


def spoil(memory: Tensor) -> None:
    """Make bytes unusable. memory: uint8 [bytes]; where it is not even, by bytes."""
    if len(memory) % 2 or memory.data_ptr() % 2 or memory.storage_offset() % 2:
        memory.fill_(_SPOILT >> 8)
    else:
        memory.view(torch.int16).fill_(_SPOILT)


class plainly:  # noqa: N801
    """Within it things run as on a CPU, unseen by what looks at calls."""

    def __enter__(self) -> None:
        self._dispatch = torch._C._DisableTorchDispatch()
        self._function = torch._C.DisableTorchFunction()
        self._inference = torch._C._InferenceMode(True)
        self._dispatch.__enter__()
        self._function.__enter__()
        self._inference.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._inference.__exit__(*error)
        self._function.__exit__(*error)
        self._dispatch.__exit__(*error)


class Event:
    """A place on a stream; as torch.cuda.Event."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.over = True
        self.at = 0.0
        self._stream: Stream | None = None
        self._turn = 0  # only the last recording counts

    def record(self, stream: Stream | None = None) -> None:
        (stream or CARD.current).put(self._mark(stream or CARD.current))

    def record_now(self, stream: Stream) -> None:
        """Also while a graph is recorded."""
        stream.put_now(self._mark(stream))

    def _mark(self, stream: Stream) -> Step:
        self._stream = stream
        self._turn += 1
        self.over, turn = False, self._turn

        def reached() -> None:
            if turn == self._turn:
                self.over, self.at = True, time.perf_counter()

        return reached

    def elapsed_time(self, end: Event) -> float:
        assert self.over and end.over
        return 1000 * (end.at - self.at)

    def query(self) -> bool:
        CARD.refuse_in_recordings("to ask for an event")
        CARD.by_chance(0.5)  # who keeps asking must see it end
        return self.over

    def synchronize(self) -> None:
        CARD.refuse_in_recordings("to wait for an event")
        CARD.events += not self.over
        self.bring_about()

    def bring_about(self) -> None:
        while not self.over:
            assert self._stream is not None
            self._stream.go()


class Stream:
    """Work in its order, waits for events of other streams among it; as torch.cuda.Stream."""

    def __init__(self, device: Any = 0, priority: int = 0) -> None:
        self.device = torch.device("cuda", getattr(device, "index", device) or 0)
        self.priority = priority
        self._steps: deque[Step | Event] = deque()
        CARD.streams.append(self)

    def put(self, step: Step | Event) -> None:
        graph = CARD.recording
        if graph is not None and graph.stream is self:
            assert not isinstance(step, Event), "a graph that waits for another stream"
            graph.steps.append(step)
            return
        if self not in CARD.defaults and not isinstance(step, Event):
            CARD.worked[self.device] += 1
        self.put_now(step)

    def put_now(self, step: Step | Event) -> None:
        """Also while a graph is recorded: what is no work of its own."""
        self._steps.append(step)
        CARD.by_chance()

    @property
    def ready(self) -> bool:
        """Whether something could run now."""
        if not self._steps:
            return False
        first = self._steps[0]
        return not isinstance(first, Event) or first.over

    def go(self) -> None:
        """One piece of work, and before it whatever it waits for."""
        if not self._steps:
            return
        step = self._steps[0]
        if isinstance(step, Event):
            step.bring_about()
            self._steps.popleft()
            return
        self._steps.popleft()
        with CARD.busy(), plainly():
            step()

    def finish(self) -> None:
        while self._steps:
            self.go()

    def synchronize(self) -> None:
        CARD.wait("for a stream", self)

    def wait_event(self, event: Event) -> None:
        if not event.over:
            self.put(event)

    def wait_stream(self, other: Stream) -> None:
        event = Event()
        event.record(other)
        self.wait_event(event)


class Pool:
    """Memory of graphs that share it: what one of them has given back, all of them write to.

    ``stuck``: a recording into it broke off, and PyTorch takes it to go on.
    """

    def __init__(self) -> None:
        self.free: list[Tensor] = []
        self.stuck = False

    def end(self) -> None:
        if not self.stuck:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.stuck = False


class Graph:
    """What was recorded; as torch.cuda.CUDAGraph."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.stream: Stream | None = None
        self.pool = Pool()

    def replay(self) -> None:
        CARD.refuse_in_recordings("to replay a graph")

        def spoil_pool() -> None:
            for memory in self.pool.free:
                spoil(memory)

        for step in (spoil_pool, *self.steps):
            CARD.current.put(step)


class Card:
    """All cards of the process, as torch.cuda has them too.

    waits: why the host has waited for a stream or a card, each time.
    events: how often it has waited for an event.
    uploads: copies from the host to a card.
    pinned: host memory that copies need not wait for, by address; none is given out twice.
    worked: how much was put on streams that a program made, as an engine's lanes do, by card.
    """

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.defaults: list[Stream] = []
        self.recording: Graph | None = None
        self.waits: list[str] = []
        self.events = self.uploads = 0
        self.pinned: dict[int, Tensor] = {}
        self.worked: Counter[torch.device] = Counter()
        self.current: Stream
        self._idle = True
        self._chance, self._eagerness = random.Random(0), 0.0

    def reset(self, seed: int = 0, eagerness: float = 0.0, cards: int = 0) -> None:
        """New cards. ``eagerness``: how often work runs before anybody waits for it."""
        self.streams.clear()
        self.waits.clear()
        self.pinned.clear()
        self.worked.clear()
        self.events = self.uploads = 0
        self.recording, self._idle = None, True
        self._chance, self._eagerness = random.Random(seed), eagerness
        self.defaults = [Stream(index) for index in range(cards)]
        if cards:
            self.current = self.defaults[0]

    def stream(self, device: torch.device | None = None) -> Stream:
        """Where work on a card goes now."""
        here = device is None or device.index == self.current.device.index
        return self.current if here else self.defaults[device.index or 0]

    @contextmanager
    def busy(self) -> Iterator[None]:
        """While something runs nothing else begins."""
        before, self._idle = self._idle, False
        try:
            yield
        finally:
            self._idle = before

    def by_chance(self, least: float = 0.0) -> None:
        """Perhaps something runs."""
        if not self._idle:
            return
        with self.busy():
            while self._chance.random() < max(self._eagerness, least):
                ready = [stream for stream in self.streams if stream.ready]
                if not ready:
                    return
                stream = self._chance.choice(ready)
                for _ in range(self._chance.choice([1, 4, 32])):
                    if stream.ready:
                        stream.go()

    def refuse_in_recordings(self, what: str) -> None:
        if self.recording is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: {what}")

    def wait(self, why: str, stream: Stream) -> None:
        """The host waits for all that is on a stream."""
        self.refuse_in_recordings(f"to wait {why}")
        self.waits.append(why)
        stream.finish()

    def synchronize(self, *_: Any) -> None:
        self.refuse_in_recordings("to wait for a card")
        self.waits.append("for a card")
        self._finish()

    def _finish(self) -> None:
        for stream in self.streams:
            stream.finish()

    @contextmanager
    def on(self, stream: Stream) -> Iterator[Stream]:
        """As torch.cuda.stream."""
        before, self.current = self.current, stream
        try:
            yield stream
        finally:
            self.current = before

    @contextmanager
    def record(
        self, graph: Graph, pool: Pool | None = None, stream: Stream | None = None, **_: Any
    ) -> Iterator[None]:
        """As torch.cuda.graph. What CUDA breaks off fails once more where it would end."""
        self.refuse_in_recordings("to record another graph")
        self._finish()
        graph.pool, graph.stream = pool or graph.pool, stream or Stream()
        if graph.pool.stuck:
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        with self.on(graph.stream):
            self.recording = graph
            try:
                yield
            except RuntimeError as error:
                if isinstance(error, torch.OutOfMemoryError):  # of PyTorch's own allocator
                    raise
                graph.pool.stuck = True
                raise RuntimeError("failed due to a previous error during capture") from error
            finally:
                self.recording = None


CARD = Card()
