"""Builds an engine's arena, scheduler, lanes and driver from a loaded pair."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine import _core
from engine._core import LARGE, SMALL
from engine.accounting.pricing import Price
from engine.assembly.loading import LoadedPair
from engine.config import ROLES, EngineConfig
from engine.device.device_queue import CudaQueue
from engine.device.devices import Backends, Devices, make_queue
from engine.device.graphs import CudaRecorder, Graphs, HostRecorder, Recorder
from engine.device.host_offload import HostKVStore
from engine.device.kv_arena import ArenaGeometry, KVArena
from engine.execution.inputs import TickLimits
from engine.execution.runner import ModelRunner
from engine.execution.sampler import Sampler
from engine.requests.driver import Driver
from engine.requests.input_processor import InputProcessor, RequestLimits
from engine.requests.lane import Lane
from engine.requests.retokenize import TokenizerBridge
from engine.routing.speculation import Speculation
from kernels.ops import Backend


@dataclass(frozen=True)
class EngineParts:
    """The parts of one engine. ``bridge``: set if the two models have different tokens."""

    arena: KVArena
    scheduler: _core.Scheduler
    lanes: tuple[Lane, Lane]
    driver: Driver
    inputs: InputProcessor
    bridge: TokenizerBridge | None


def assemble(
    loaded: LoadedPair,
    config: EngineConfig,
    dtype: torch.dtype,
    devices: Devices,
    backends: Backends,
    geometry: ArenaGeometry,
) -> EngineParts:
    """Allocate the arena and build the parts that use it.

    ``backends``: those that the decoders were built with.

    Raises:
        SteerError: if there is no memory for the arena or for KV on the host.
    """
    arena = KVArena(geometry, dtype, devices)
    scheduler = build_scheduler(loaded, config, geometry)
    host = HostKVStore(arena, config.host_blocks) if config.host_blocks else None
    small, large = (
        build_runner(model, loaded, config, arena, scheduler, devices[model], backends[model], host)
        for model in (SMALL, LARGE)
    )
    lanes = build_lane(small, config, scheduler), build_lane(large, config, scheduler)
    driver = Driver(
        scheduler,
        lanes,
        loaded.tokenizer,
        loaded.shapes,
        config.check_every,
        config.overlap,
        forks=all(device.type == "cpu" for device in devices),
    )
    bridge, eos_ids = build_bridge(loaded)
    limits = RequestLimits(config.max_waiting, loaded.max_context)
    inputs = InputProcessor(
        scheduler,
        loaded.tokenizer,
        driver,
        eos_ids,
        loaded.default_params,
        limits,
        Speculation(config.speculate, config.draft_source),
        bridge,
    )
    return EngineParts(arena, scheduler, lanes, driver, inputs, bridge)


def build_scheduler(
    loaded: LoadedPair, config: EngineConfig, geometry: ArenaGeometry
) -> _core.Scheduler:
    """The core, for an arena of ``geometry``."""
    small, large = loaded.shapes
    row = Price.of(small).row, Price.of(large).row
    return _core.Scheduler(
        slabs=geometry.slabs,
        slots=geometry.slots,
        block_tokens=config.block_tokens,
        max_context=loaded.max_context,
        max_sequences=config.max_sequences,
        max_waiting=config.max_waiting,
        max_tick_tokens=config.max_tick_tokens,
        recompute_cost=row,
        prefix_cache=config.prefix_cache,
        background=(config.read_along, config.eager_backlog),
        lane_policy=config.lane_policy,
        gather=config.gather,
        hold_ticks=config.hold_ticks,
        host_blocks=config.host_blocks,
        eager_admission=config.eager_admission,
        max_drawn_rows=config.drawn_rows,
        tick_cost=row,  # a tick reads all weights, and a row multiplies by each
        delimiters=[d.encode() for d in config.delimiters],
        token_bytes=loaded.tokenizers[0].bytes,
        large_token_bytes=loaded.tokenizers[1].bytes,
    )


def build_runner(
    model: int,
    loaded: LoadedPair,
    config: EngineConfig,
    arena: KVArena,
    scheduler: _core.Scheduler,
    device: torch.device,
    backend: Backend,
    host: HostKVStore | None,
) -> ModelRunner:
    """The runner of ``model``'s ticks, which ``scheduler`` plans."""
    decoder, queue = loaded.decoders[model], make_queue(model, device)
    on_gpu, size = isinstance(queue, CudaQueue), loaded.tokenizers[model].size
    sampler = Sampler(model, size, backend, config.fused_sampling, pinned=on_gpu)
    blocks = -(-loaded.max_context // config.block_tokens)
    limits = TickLimits(
        config.max_sequences, config.max_tick_tokens, blocks, config.graph_rows, config.drawn_rows
    )
    recorder: Recorder | None = None
    if {"on": True, "off": False, "auto": on_gpu}[config.graphs]:
        recorder = CudaRecorder(queue) if isinstance(queue, CudaQueue) else HostRecorder()
    # A GPU pads batches without graphs too, so that graphs do not change a bit of the results.
    return ModelRunner(
        model,
        scheduler,
        decoder,
        backend,
        arena.rows(decoder.config, model),
        arena.layout(decoder.config, model, config.block_tokens),
        sampler,
        queue,
        Graphs(recorder),
        limits,
        padded=on_gpu or recorder is not None,
        fused_head=config.fused_head,
        host=host,
    )


def build_lane(runner: ModelRunner, config: EngineConfig, scheduler: _core.Scheduler) -> Lane:
    """The lane that drives ``runner``."""
    choice = config.plan_ahead
    if choice == "auto":
        choice = "small" if runner.queue.device.type == "cuda" else "off"
    return Lane(scheduler, runner, choice in ("both", ROLES[runner.model]))


def build_bridge(loaded: LoadedPair) -> tuple[TokenizerBridge | None, tuple[int, ...]]:
    """The bridge between two vocabularies, if there are two, and the ids that end a text."""
    small, large = (shape.eos_ids for shape in loaded.shapes)
    if loaded.large_tokenizer is None:
        return None, small + large
    known = tuple(i for i in large if i < loaded.large_tokenizer.size)
    return TokenizerBridge(loaded.tokenizers, (small, known)), small
