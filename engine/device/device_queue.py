"""Where a lane's work runs: at once on a CPU, on a stream of its own on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor


class Ticket(Protocol):
    """Work that was submitted."""

    def done(self) -> bool:
        """Whether it is over. Never waits."""

    def wait(self) -> None:
        """Until it is over. Raises what the work raised, if that did not come up at once."""


class DeviceQueue(Protocol):
    """Runs what it is given in order. Two lanes have two, which do not wait for each other."""

    device: torch.device

    def submit(self, work: Callable[[], None]) -> Ticket:
        """Start ``work`` after all that was submitted before. It must not wait for the device."""

    def fetch(self, tensor: Tensor) -> Tensor:
        """From within work: a copy on the host, there once that work's ticket is done."""

    def adopt(self, tensors: Iterable[Tensor]) -> None:
        """Work will use what other code has made: after that, and before it is given out again."""

    def release(self) -> None:
        """Give memory back that is only kept to be used again."""


class _Over:
    def done(self) -> bool:
        return True

    def wait(self) -> None:
        pass


class HostQueue:
    """Runs work while it is submitted."""

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


class _Recorded:
    def __init__(self, event: torch.cuda.Event) -> None:
        self._event = event

    def done(self) -> bool:
        return self._event.query()

    def wait(self) -> None:
        self._event.synchronize()


class CudaQueue:
    """A stream. Work that fails is waited for, so that nothing it uses is still being read."""

    def __init__(self, device: torch.device, priority: int = 0) -> None:
        """``priority``: lower goes first; a card has few levels and takes the nearest."""
        self.device = device
        with torch.cuda.device(device):
            self.stream = torch.cuda.Stream(device, priority=priority)

    def submit(self, work: Callable[[], None]) -> Ticket:
        with torch.cuda.stream(self.stream):
            try:
                work()
            except BaseException:
                self.stream.synchronize()
                raise
            event = torch.cuda.Event()
            event.record(self.stream)
        return _Recorded(event)

    def fetch(self, tensor: Tensor) -> Tensor:
        # Freed pinned memory is given out again only after this copy: its allocator sees to that.
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
