"""Checks that a pair fits its devices, and sizes the arena in the memory that is left."""

from __future__ import annotations

from dataclasses import replace

import torch

from engine.config import EngineConfig, ModelConfig
from engine.device.arena_size import default_slabs, log_shortage
from engine.device.devices import card_memory, check_shapes
from engine.device.host_memory import available
from engine.device.kv_arena import ArenaGeometry
from engine.device.memory_budget import arena_slabs, weight_bytes, workspace_bytes

Shapes = tuple[ModelConfig, ModelConfig]


class MemoryPlan:
    """The memory of one engine's devices. On a CPU, weights are assumed to fit."""

    def __init__(
        self, devices: tuple[torch.device, torch.device], config: EngineConfig, element_bytes: int
    ) -> None:
        self._devices = devices
        self._config = config
        self._element_bytes = element_bytes
        self._on_cards = devices[0].type == "cuda"

    def check(self, shapes: Shapes) -> None:
        """SteerError if GPU kernels do not support a pair, or its GPUs cannot hold it."""
        if self._on_cards:
            check_shapes(shapes, self._config)
            self._slabs(shapes, loaded=False)

    def geometry(self, shapes: Shapes, context: int) -> ArenaGeometry:
        """The arena's geometry for requests of up to ``context`` tokens, after loading weights."""
        config = self._config
        geometry = ArenaGeometry.of(shapes, config, self._element_bytes)
        slabs = geometry.slabs
        if self._on_cards:
            slabs = self._slabs(shapes, loaded=True)
        elif not config.arena_tokens and (free := available()) is not None:
            slabs = default_slabs(geometry, config, context, free)
        geometry = replace(geometry, slabs=slabs)
        log_shortage(geometry, config, context)
        return geometry

    def _slabs(self, shapes: Shapes, loaded: bool) -> int:
        """Slabs that fit on every GPU: each holds an arena of the same geometry."""
        config, size = self._config, self._element_bytes
        geometry = ArenaGeometry.of(shapes, config, size)
        tokens = geometry.slots[1] * config.block_tokens
        fitting = []
        for device in dict.fromkeys(self._devices):
            here = [shape for shape, d in zip(shapes, self._devices, strict=True) if d == device]
            needed = {
                "weights": 0 if loaded else sum(weight_bytes(s, size) for s in here),
                "workspaces": sum(workspace_bytes(s, config, size) for s in here),
            }
            card = card_memory(device, config.memory_fraction)
            asked = geometry.slabs if config.arena_tokens else 0
            fitting.append(arena_slabs(card, needed, geometry.slab_bytes, tokens, asked))
        return min(fitting)
