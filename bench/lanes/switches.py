"""The engine's optimisations and how each is turned the other way: one place for all ablations."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from engine import EngineConfig

# Tokens behind which a model reads along, 0 for never.
_LAGS = ("eager_backlog", "read_along")
# Other numbers of which 0 means off, with the value that means on.
_AMOUNTS = {"graph_rows": 256, "host_kv_tokens": 16384}
# Names, with what is tried instead of what "auto" chooses on a card, and on a CPU.
_CHOICES = {"graphs": ("off", "on"), "plan_ahead": ("off", "both")}
# What a switch needs to be on. Prompts of a bench differ, so the cache finds what was parked only.
_NEEDS = {"host_kv_tokens": {"prefix_cache": True}}
# Nothing but one kind of device looks at these.
_ON_CARDS = ("overlap", "fused_head", "fused_sampling", "graph_rows")
_ON_CPUS = ("cpu_kernels",)
# Requests of a bench must not share what they measure; what takes other pairs is no optimisation.
_NOT_HERE = ("prefix_cache", "retokenize")
# Where every request takes the likeliest token these change nothing.
OF_DRAWS = ("fused_sampling",)


def flipped(config: EngineConfig, on_gpu: bool, step: int) -> dict[str, Any]:
    """By name, the value that each switch of ``config`` does not have now.

    Every true-or-false setting is a switch, so new ones show up by themselves; what the device at
    hand does not look at is left out.

    Args:
        config: as it is.
        on_gpu: whether lanes run on a card.
        step: tokens of the steps that are handed over. A model that reads along begins once it
            lags a quarter of one behind: with a whole one there would be nothing left to read.
    """
    not_here = (*_NOT_HERE, *(_ON_CPUS if on_gpu else _ON_CARDS))
    found: dict[str, Any] = {
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
    return found | lags | amounts | choices


def turned(name: str, value: Any) -> dict[str, Any]:
    """The settings that turn one switch to ``value``, with those that it needs."""
    return {name: value} | (_NEEDS.get(name, {}) if value else {})
