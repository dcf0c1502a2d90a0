"""Chooses the devices and the dtype of an engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.config import ROLES, EngineConfig, ModelConfig
from engine.device.device_queue import CudaQueue, DeviceQueue, HostQueue
from engine.device.memory_budget import CardMemory
from engine.errors import SteerError
from kernels import ops

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Devices = tuple[torch.device, torch.device]
Backends = tuple[ops.Backend, ops.Backend]
_PRIORITIES = (-1, 0)  # ticks of the small model are short: they go between those of the large


def choose_devices(name: str, each: Sequence[str] | None = None) -> Devices:
    """The devices of the small and the large model.

    Args:
        name: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N", for both.
        each: two names instead; both CPUs, or both GPUs.

    Raises:
        SteerError: on an unknown or missing device.
    """
    if each is None:
        shared = _device(name)
        return shared, shared
    if not isinstance(each, list | tuple) or len(each) != 2:
        raise SteerError(f"devices must name one for each of the two models, got {each!r}")
    small, large = map(_device, each)
    if small.type != large.type:
        raise SteerError(f"devices must be of one kind, got {small} and {large}")
    return small, large


def _device(name: str) -> torch.device:
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not isinstance(name, str):
        raise SteerError(f"unknown device {name!r}; known: auto, cpu, cuda, cuda:N")
    if name == "auto":
        name = "cuda" if cards else "cpu"
    kind, _, index = name.partition(":")
    if name == "cpu":
        return torch.device("cpu")
    if kind != "cuda" or (":" in name and not index.isdecimal()):
        raise SteerError(f"unknown device {name!r}; known: auto, cpu, cuda, cuda:N")
    if not cards:
        raise SteerError(f"device {name}: PyTorch sees no NVIDIA GPU here; take cpu or auto")
    number = int(index) if index else torch.cuda.current_device()
    if number >= cards:
        raise SteerError(f"device {name}: there are {cards} GPUs, numbered from 0")
    return torch.device("cuda", number)


def choose_dtype(name: str, devices: Devices) -> torch.dtype:
    """The dtype of weights and KV; "auto" is bfloat16 on GPUs that support it, else float32.

    SteerError on an unknown dtype, or one that a GPU lacks.
    """
    if name != "auto" and name not in DTYPES:
        raise SteerError(f"unknown dtype {name!r}; known: {', '.join(DTYPES)}, auto")
    cards = [device for device in devices if device.type == "cuda"]
    lacking = [d for d in cards if torch.cuda.get_device_capability(d) < (8, 0)]
    if name == "auto":
        return torch.bfloat16 if cards and not lacking else torch.float32
    if name == "bfloat16" and lacking:
        card = torch.cuda.get_device_name(lacking[0])
        raise SteerError(f"{lacking[0]} ({card}) has no bfloat16; take float32")
    return DTYPES[name]


def make_backends(devices: Devices, choice: ops.BackendChoice | None = None) -> Backends:
    """What computes for each model; one for both where they share a device."""
    choose = choice or ops.backend_for
    small = choose(devices[0])
    return small, small if devices[1] == devices[0] else choose(devices[1])


def make_queue(model: int, device: torch.device) -> DeviceQueue:
    """Where a lane's passes run."""
    return CudaQueue(device, _PRIORITIES[model]) if device.type == "cuda" else HostQueue()


def card_memory(device: torch.device, fraction: float) -> CardMemory:
    """A GPU's present memory; ``fraction``: share of it that may be in use."""
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    name = f"{device} ({torch.cuda.get_device_name(device)})"
    return CardMemory(name, total, free, fraction)


def check_shapes(shapes: tuple[ModelConfig, ModelConfig], config: EngineConfig) -> None:
    """SteerError on what the kernels for GPUs were not built for."""
    limits = ops.gpu_limits()
    if config.block_tokens not in limits.block_tokens:
        known = ", ".join(map(str, limits.block_tokens))
        raise SteerError(f"block_tokens must be one of {known} on a GPU, not {config.block_tokens}")
    for role, shape in zip(ROLES, shapes, strict=True):
        if shape.head_dim not in limits.head_dims:
            known = ", ".join(map(str, limits.head_dims))
            raise SteerError(
                f"the {role} model has heads of {shape.head_dim}; on a GPU one of {known}"
            )
        group = shape.heads // shape.kv_heads
        if group > limits.widest_group:
            raise SteerError(
                f"the {role} model has {group} query heads a key head; on a GPU at most "
                f"{limits.widest_group}"
            )
