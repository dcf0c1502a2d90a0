"""The device that is measured: its name, its clock, its bandwidth. No other module asks torch."""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from bench.rows import machine
from engine.device.devices import Devices, choose_devices
from engine.errors import SteerError

KINDS = ("cpu", "cuda")
_COPIED = 2**28  # bytes; far more than a cache holds
_QUICK = 2**24


@dataclass(frozen=True)
class Bandwidth:
    """Bytes a second as measured in this run: a copy (reads and writes both count), and a read."""

    copy: float
    read: float


class Device:
    """A CPU or the current CUDA device; or a card for each model."""

    def __init__(self, kind: str, each: Devices | None = None) -> None:
        """SteerError on an unknown kind, and on CUDA where there is none.

        ``each``: of the small and the large model, of that kind.
        """
        if kind not in KINDS:
            raise SteerError(f"--device: unknown device {kind!r}; known: {', '.join(KINDS)}")
        if kind == "cuda" and not torch.cuda.is_available():
            raise SteerError("--device cuda: PyTorch sees no NVIDIA GPU here; use --device cpu")
        self.kind = kind
        self.on_gpu = kind == "cuda"
        self._each = each
        # The bandwidth and the peers are measured on the large model's card.
        self._cards = list(dict.fromkeys(each)) if each and self.on_gpu else []
        if each and self.on_gpu:
            torch.cuda.set_device(each[1])

    @classmethod
    def best(cls) -> Device:
        """CUDA where there is a card."""
        return cls("cuda" if torch.cuda.is_available() else "cpu")

    @classmethod
    def of_models(cls, names: str) -> Device:
        """A card for each model: two names as an engine takes them, separated by a comma."""
        try:
            each = choose_devices("auto", [name.strip() for name in names.split(",")])
        except SteerError as error:
            raise SteerError(f"--devices: {error}") from None
        return cls(each[0].type, each)

    @property
    def name(self) -> str:
        """The card or both cards, or the processor."""
        if not self.on_gpu:
            return machine()
        cards = self._cards or [self._current]
        return " + ".join(torch.cuda.get_device_name(card) for card in cards)

    @property
    def _current(self) -> torch.device:
        return torch.device("cuda", torch.cuda.current_device())

    @property
    def engine_options(self) -> dict[str, Any]:
        """Options that put an engine on this device."""
        if self._each is None:
            return {"device": self.kind}
        return {"devices": [str(device) for device in self._each]}

    @property
    def cards(self) -> int:
        """How many cards the models are on; 0 on a CPU."""
        return max(1, len(self._cards)) if self.on_gpu else 0

    @property
    def lanes_together(self) -> bool:
        """Whether both lanes can be in flight at once: on a CPU they take turns."""
        return self.on_gpu

    def synchronize(self) -> None:
        """Wait until all launched work is done."""
        if self.on_gpu:
            for card in self._cards or [self._current]:
                torch.cuda.synchronize(card)

    def seconds(self, call: Callable[[], object]) -> float:
        """Wall clock of a call, all of its work on the device included."""
        self.synchronize()
        began = time.perf_counter()
        call()
        self.synchronize()
        return time.perf_counter() - began

    def release(self) -> None:
        """Release the memory of dropped objects, so that the next model fits."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def bandwidth(self, quick: bool = False) -> Bandwidth:
        """Measure it: before the models are loaded, as it takes memory of its own."""
        if self.on_gpu:
            from bench.kernel_bench.card import calibrate

            card = calibrate(quick)
            self.release()
            return Bandwidth(card.copy_bandwidth, card.read_bandwidth)
        size = _QUICK if quick else _COPIED
        source = torch.ones(size // 4)
        target = torch.empty_like(source)
        copy, read = (
            min(self.seconds(call) for _ in range(5))
            for call in (lambda: target.copy_(source), lambda: source.sum())
        )
        return Bandwidth(2 * size / copy, size / read)

    def busy_share(self, call: Callable[[], object]) -> float | None:
        """Share of a call's time in which the device computed; None where that is unknown, as where
        the driver shows the profiler nothing.

        From the profiler, which slows the host down: an upper bound of how idle the device is.
        """
        if not self.on_gpu:
            return None
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            wall = self.seconds(call)
        spans = [
            (event.time_range.start, event.time_range.end)
            for event in profiler.events()
            if event.device_type.name == "CUDA"
        ]
        return covered(spans) / (1e6 * wall) if spans else None


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for first, last in sorted(spans):
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total


def threads() -> str:
    """How many threads the CPU's products use."""
    return f"{torch.get_num_threads()} threads, {platform.machine()}"
