"""How large an arena is by default on a CPU, and whether it holds all requests at once."""

from __future__ import annotations

import logging
import math

from engine.config import EngineConfig
from engine.errors import SteerError
from engine.memory import ArenaGeometry
from engine.room import LEAST_TOKENS

_SHARE = 0.5  # of the memory that is free: passes, other engines and other programs need some, too
_MOST = 0.75  # of it, where half does not hold one request
_log = logging.getLogger(__name__)


def slabs_for(requests: int, context: int, block_tokens: int, geometry: ArenaGeometry) -> int:
    """Slabs that hold so many requests of ``context`` tokens, each on both models."""
    blocks = requests * math.ceil(context / block_tokens)
    return sum(math.ceil(blocks / slots) for slots in geometry.slots)


def default_slabs(geometry: ArenaGeometry, config: EngineConfig, context: int, free: int) -> int:
    """Slabs of an arena in host memory where nobody says how many.

    As many as ``max_sequences`` requests of full context need on both models, and not fewer than
    ``geometry`` has: what requests leave is the prefix cache's. But at most half of what is free;
    up to three quarters, if no model could hold a request of full context else. Memory is only
    taken as far as it is written, but an engine that runs long writes all of it, for its prefix
    cache.

    Args:
        free: bytes that can be allocated, the weights being loaded.

    Raises:
        SteerError: if there is too little for any use.
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
    """Say how many requests of full context the arena holds, if not ``max_sequences``.

    Few requests are that long, so with a long context this is the ordinary case and no fault:
    INFO. Where there is no room for one on both models it is a WARNING: what the context allows
    may be refused, or lose its KV whenever the other model takes over, though it runs alone.
    """
    held = config.max_sequences
    while held and slabs_for(held, context, config.block_tokens, geometry) > geometry.slabs:
        held -= 1
    if held == config.max_sequences:
        return
    _log.log(
        logging.INFO if held else logging.WARNING,
        "the arena holds %d requests of %d tokens (max_context) at once on both models, "
        "max_sequences is %d: more of them wait, or lose KV and compute it again; "
        "raise arena_tokens, or lower max_context or max_sequences",
        held, context, config.max_sequences,
    )  # fmt: skip
