"""The engine's optimisations and how each is turned the other way: one place for all ablations."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from engine import EngineConfig

# Numbers of which 0 means off, with the value that means on.
_AMOUNTS = {"eager_backlog": 128, "read_along": 32, "host_kv_tokens": 16384}
# Names, with what is tried instead of whatever is chosen now.
_CHOICES = {"graphs": "off", "plan_ahead": "off"}
# What a switch needs to be on. Prompts of a bench differ, so the cache finds what was parked only.
_NEEDS = {"host_kv_tokens": {"prefix_cache": True}}
# Requests of a bench must not share what they measure.
_NOT_HERE = ("prefix_cache",)


def flipped(config: EngineConfig) -> dict[str, Any]:
    """By name, the value that each switch of ``config`` does not have now.

    Every true-or-false setting is a switch, so new ones show up by themselves.
    """
    found: dict[str, Any] = {
        f.name: not getattr(config, f.name)
        for f in fields(config)
        if isinstance(getattr(config, f.name), bool) and f.name not in _NOT_HERE
    }
    amounts = {n: 0 if getattr(config, n) else on for n, on in _AMOUNTS.items()}
    return found | amounts | _CHOICES


def turned(name: str, value: Any) -> dict[str, Any]:
    """The settings that turn one switch to ``value``, with those that it needs."""
    return {name: value} | (_NEEDS.get(name, {}) if value else {})
