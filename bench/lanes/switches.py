"""The engine's optimisations and how each is turned the other way: one place for all ablations."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from engine import EngineConfig

# Lag in tokens from which a model reads along, 0 for never.
_LAGS = ("eager_backlog", "read_along")
# Other numbers where 0 means off, with the value that means on.
_AMOUNTS = {"graph_rows": 256, "host_kv_tokens": 16384}
# Names, with the value to try instead of the choice of "auto" on a card, and on a CPU.
_CHOICES = {"graphs": ("off", "on"), "plan_ahead": ("off", "both")}
# Other settings that a switch needs. A bench's prompts differ, so the cache only finds parked KV.
_NEEDS = {"host_kv_tokens": {"prefix_cache": True}}
# Settings that only one kind of device looks at.
_ON_CARDS = ("overlap", "fused_head", "fused_sampling", "graph_rows")
_ON_CPUS = ("cpu_kernels",)
# Requests of a bench must not share the work that is measured; supporting other pairs is no
# optimisation.
_NOT_HERE = ("prefix_cache", "retokenize")
# Settings that change nothing if every request takes the likeliest token.
OF_DRAWS = ("fused_sampling",)


def flipped(config: EngineConfig, on_gpu: bool, step: int) -> dict[str, Any]:
    """By name, the value that each switch of ``config`` does not have now.

    Every boolean setting is a switch, so new ones appear automatically; settings that the device
    does not look at are left out.

    Args:
        config: the present settings.
        on_gpu: whether lanes run on a card.
        step: tokens of the steps that are handed over. A model that reads along begins at a lag of
            a quarter of a step: with a whole one there would be nothing left to read.
    """
    not_here = (*_NOT_HERE, *(_ON_CPUS if on_gpu else _ON_CARDS))
    flags: dict[str, Any] = {
        f.name: not getattr(config, f.name)
        for f in fields(config)
        if isinstance(getattr(config, f.name), bool) and f.name not in not_here
    }
    lag = max(1, step // 4)
    lags = {name: 0 if getattr(config, name) else lag for name in _LAGS}
    amounts = {
        name: 0 if getattr(config, name) else on
        for name, on in _AMOUNTS.items()
        if name not in not_here
    }
    choices = {name: tried[not on_gpu] for name, tried in _CHOICES.items()}
    return flags | lags | amounts | choices


def turned(name: str, value: Any) -> dict[str, Any]:
    """The settings that turn one switch to ``value``, and the settings that it needs."""
    return {name: value} | (_NEEDS.get(name, {}) if value else {})
