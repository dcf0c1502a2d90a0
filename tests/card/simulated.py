"""Puts the simulated card where PyTorch and Triton look for one.

For one thread. What a test may trip over: `x[[0, 1]]`, `torch.as_tensor(..., device="cuda")`,
copies between cards, `Tensor.is_pinned` and torch.compile are not simulated; random numbers are
the host's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from triton.runtime import interpreter

from tests.card.streams import CARD, Card, Event, Graph, Pool, Stream
from tests.card.tensor import MODE, CardTensor, inner, pin
from tests.card.trees import each, leaves
from tests.interpreter import fault, require

GIB = 2**30
_METHODS = ("data_ptr", "record_stream", "tolist")


class _Functions(TorchFunctionMode):
    """What does not come through the dispatcher, or not with what it needs."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        args, kwargs = each(_numbered, args), each(_numbered, kwargs or {})
        if func is torch.tensor and "cuda" in str(kwargs.get("device")):
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func is torch.Tensor.pin_memory:
            return pin(args[0].clone())
        if args and isinstance(args[0], CardTensor) and getattr(func, "__name__", "") in _METHODS:
            return getattr(CardTensor, func.__name__)(*args, **kwargs)
        return func(*args, **kwargs)


def _numbered(x: Any) -> Any:
    """A device without a number is the current one."""
    if isinstance(x, str | torch.device) and str(x) == "cuda":
        return CARD.current.device
    return x


class _Generator:
    """Random numbers come from the host."""

    _real = torch.Generator

    def __new__(cls, _: Any = "cpu") -> Any:
        return cls._real("cpu")


@contextmanager
def _guard() -> Iterator[None]:
    """C++ asks for the guard of CUDA devices before it dispatches, and PyTorch without CUDA has
    none. The CPU's guard will do: there is never anything to switch."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    name = "_ZN3c104impl26device_guard_impl_registryE"
    guards = (ctypes.c_void_p * 2).in_dll(library, name)
    before, guards[1] = guards[1], guards[0]
    try:
        yield
    finally:
        guards[1] = before


def _launch(run: Any) -> Any:
    """A kernel's launch: the interpreter runs it when the stream comes to it."""

    def launch(self: Any, *args: Any, **kwargs: Any) -> None:
        require()
        tensors = [x for x in leaves(args, kwargs) if isinstance(x, torch.Tensor)]
        assert all(x.device == CARD.current.device for x in tensors), "a tensor of another device"
        given, named = each(inner, args), each(inner, kwargs)
        CARD.current.put(lambda: run(self, *given, **named))

    return launch


def _index(device: Any) -> int:
    return getattr(device, "index", device) or 0


@contextmanager
def _device(device: Any) -> Iterator[None]:
    elsewhere = _index(device) != CARD.current.device.index
    with CARD.on(CARD.defaults[_index(device)]) if elsewhere else nullcontext():
        yield


def _properties(_: Any = None) -> SimpleNamespace:
    return SimpleNamespace(
        name="a simulated card",
        multi_processor_count=132,
        L2_cache_size=2**16,
        major=9,
        minor=0,
        total_memory=80 * GIB,
    )


def _faces() -> dict[str, Any]:
    """What stands in for torch.cuda."""
    return {
        "CUDAGraph": Graph,
        "Event": Event,
        "Stream": Stream,
        "_lazy_init": lambda: None,
        "current_device": lambda: CARD.current.device.index,
        "current_stream": CARD.stream,
        "device": _device,
        "device_count": lambda: len(CARD.defaults),
        "empty_cache": lambda: None,
        "get_device_capability": lambda _=None: (9, 0),
        "get_device_name": lambda _=None: _properties().name,
        "get_device_properties": _properties,
        "graph": CARD.record,
        "graph_pool_handle": Pool,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "mem_get_info": lambda _=None: (70 * GIB, 80 * GIB),
        "memory_allocated": lambda _=None: 0,
        "memory_reserved": lambda _=None: 0,
        "set_device": lambda device: setattr(CARD, "current", CARD.defaults[_index(device)]),
        "set_stream": lambda stream: setattr(CARD, "current", stream),
        "stream": CARD.on,
        "synchronize": CARD.synchronize,
    }


@contextmanager
def simulated_card(seed: int = 0, eagerness: float = 0.3, cards: int = 1) -> Iterator[Card]:
    """PyTorch sees so many NVIDIA GPUs. Triton's kernels must run in the interpreter.

    Args:
        seed: of when what runs.
        eagerness: how often work on a stream runs before anybody waits for it, 0 to below 1.
        cards: how many.
    """
    fault()  # looked at where launches still run at once
    CARD.reset(seed, eagerness, cards)
    nothing_seen = SimpleNamespace(events=list)
    with pytest.MonkeyPatch.context() as patch:
        for name, face in _faces().items():
            patch.setattr(torch.cuda, name, face)
        patch.setattr(torch.accelerator, "empty_host_cache", lambda: None, raising=False)
        patch.setattr(torch.profiler, "profile", lambda **_: nullcontext(nothing_seen))
        patch.setattr(torch, "Generator", _Generator)
        patch.setattr(torch._C, "_cuda_endAllocateToPool", lambda _, pool: pool.end())
        executor = interpreter.GridExecutor
        patch.setattr(executor, "__call__", _launch(executor.__call__))
        try:
            with _guard(), _Functions(), MODE:
                yield CARD
        finally:
            CARD.reset()
