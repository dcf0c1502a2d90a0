"""The default size of an arena on a CPU, and a log line if it cannot hold all requests at once."""

from __future__ import annotations

import logging
import math
from bisect import bisect_right

from engine.config import EngineConfig
from engine.device.kv_arena import ArenaGeometry
from engine.device.memory_budget import LEAST_TOKENS
from engine.errors import SteerError

_SHARE = 0.5  # of free memory: passes, other engines and other programs need some too
_MOST = 0.75  # of free memory, if half of it does not hold one request
_log = logging.getLogger(__name__)


def slabs_for(requests: int, context: int, block_tokens: int, geometry: ArenaGeometry) -> int:
    """Slabs that hold ``requests`` requests of ``context`` tokens, each on both models."""
    blocks = requests * math.ceil(context / block_tokens)
    return sum(math.ceil(blocks / slots) for slots in geometry.slots)


def default_slabs(geometry: ArenaGeometry, config: EngineConfig, context: int, free: int) -> int:
    """Slabs of an arena in host memory where ``arena_tokens`` is 0.

    As many as ``max_sequences`` requests of full context need on both models, and not fewer than
    ``geometry`` has, since the prefix cache uses the slabs that requests leave free. At most half
    of free memory; if that does not hold one request of full context on each model alone, as much
    as it needs, up to three quarters. The system maps memory when it is written, but the prefix
    cache makes a long-running engine write all of its arena.

    Args:
        free: bytes that can be allocated after the weights were loaded.

    Raises:
        SteerError: if memory is too short for a useful arena.
    """
    free -= config.host_blocks * geometry.block_bytes[1]
    blocks = math.ceil(context / config.block_tokens)
    one = max(math.ceil(blocks / slots) for slots in geometry.slots)
    asked = slabs_for(config.max_sequences, context, config.block_tokens, geometry)
    slabs = min(max(asked, geometry.slabs), int(_SHARE * free) // geometry.slab_bytes)
    if slabs < one <= int(_MOST * free) // geometry.slab_bytes:
        return one
    slab_tokens = geometry.slots[1] * config.block_tokens
    least = min(one, math.ceil(LEAST_TOKENS / slab_tokens))
    if slabs >= least:
        return slabs
    beside = " beside host_kv_tokens" if config.host_blocks else ""
    raise SteerError(
        f"{max(0, free) / 2**30:.2f} GiB of memory are free{beside}, of which the arena takes "
        f"half: too little for {least * slab_tokens} tokens, "
        f"{least * geometry.slab_bytes / 2**30:.2f} GiB; "
        "free some, take a smaller pair or dtype, or set arena_tokens"
    )


def log_shortage(geometry: ArenaGeometry, config: EngineConfig, context: int) -> None:
    """Log how many requests of full context the arena holds, if not ``max_sequences``.

    Few requests are that long, so with a long context this is normal: INFO. If not even one fits on
    both models, it is a WARNING: a request within the context may be refused, or lose its KV at
    each handoff, even if it runs alone.
    """
    most = config.max_sequences

    def slabs(requests: int) -> int:
        return slabs_for(requests, context, config.block_tokens, geometry)

    held = bisect_right(range(most + 1), geometry.slabs, key=slabs) - 1
    if not held:
        _log.warning(
            "the arena cannot hold one request of %d tokens (max_context) on both models at once: "
            "long ones are refused, or computed again at each handoff; "
            "give it more room (arena_tokens), or lower max_context",
            context,
        )
    elif held < most:
        _log.info(
            "the arena holds %d requests of %d tokens (max_context) on both models at once, "
            "max_sequences is %d: if more are that long, some wait, or are computed again; "
            "give it more room (arena_tokens), or lower max_context or max_sequences",
            held,
            context,
            most,
        )
