"""The queue of a lane's work: run at once on a CPU, on a CUDA stream of its own on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

_cuda: Any = torch.cuda  # PyTorch does not type its streams and events


class Ticket(Protocol):
    """The state of submitted work."""

    def done(self) -> bool:
        """Whether the work is done. Never waits."""

    def wait(self) -> None:
        """Wait until the work is done. Raises its error, if ``submit`` did not."""


class DeviceQueue(Protocol):
    """Runs work in order. Each lane has its own; the two do not wait for each other."""

    device: torch.device

    def submit(self, work: Callable[[], None]) -> Ticket:
        """Start ``work`` after all earlier work. It must not wait for the device."""

    def fetch(self, tensor: Tensor) -> Tensor:
        """Called by work: a copy on the host, complete when that work's ticket is done."""

    def adopt(self, tensors: Iterable[Tensor]) -> None:
        """Make tensors that were created on another stream safe to use in work: it starts after
        their creation, and their memory is reused only after it."""

    def release(self) -> None:
        """Return cached memory to the system."""


class _Over:
    def done(self) -> bool:
        return True

    def wait(self) -> None:
        pass


class HostQueue:
    """Runs work within ``submit``."""

    device = torch.device("cpu")

    def submit(self, work: Callable[[], None]) -> Ticket:
        work()
        return _Over()

    def fetch(self, tensor: Tensor) -> Tensor:
        return tensor.clone()

    def adopt(self, tensors: Iterable[Tensor]) -> None:
        pass

    def release(self) -> None:
        pass


class _Event(Protocol):
    """The part of ``torch.cuda.Event`` that is used."""

    def query(self) -> bool: ...

    def synchronize(self) -> None: ...


class _Recorded:
    def __init__(self, event: _Event) -> None:
        self._event = event

    def done(self) -> bool:
        return self._event.query()

    def wait(self) -> None:
        self._event.synchronize()


class CudaQueue:
    """A CUDA stream. After work that fails it is synchronised, so that no buffer is still read."""

    def __init__(self, device: torch.device, priority: int = 0) -> None:
        """``priority``: lower goes first; a GPU has few levels and takes the nearest."""
        self.device = device
        with torch.cuda.device(device):
            self.stream: torch.cuda.Stream = _cuda.Stream(device, priority=priority)

    def submit(self, work: Callable[[], None]) -> Ticket:
        with torch.cuda.stream(self.stream):
            try:
                work()
            except BaseException:
                self.stream.synchronize()
                raise
            event = _cuda.Event()
            event.record(self.stream)
        return _Recorded(event)

    def fetch(self, tensor: Tensor) -> Tensor:
        # PyTorch's allocator reuses freed pinned memory only after this copy.
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    def adopt(self, tensors: Iterable[Tensor]) -> None:
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        for tensor in tensors:
            tensor.record_stream(self.stream)

    def release(self) -> None:
        torch.cuda.empty_cache()
        if hasattr(torch.accelerator, "empty_host_cache"):  # not in older PyTorch
            torch.accelerator.empty_host_cache()
