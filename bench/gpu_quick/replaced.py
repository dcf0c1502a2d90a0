"""Backends with some operations done by their references, which then run on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from kernels import ops
from kernels.ops import AttentionPlan, Backend, BackendChoice, Confidence


class _Unrounded(ops.ReferenceBackend):
    """The references, with the statistics of logits that are sums in fp32, as the kernels' are."""

    def lm_head(
        self, hidden: Tensor, weight: Tensor, vocabulary: int, keep: bool, fused: bool = True
    ) -> tuple[Confidence, Tensor | None]:
        logits = self.head_logits(hidden, weight, vocabulary)
        return self.confidence(logits, vocabulary), logits if keep else None


NAMES = (
    "rms_norm",
    "add_rms_norm",
    "silu_mul",
    "linear",
    "rope_kv",
    "paged_attention",
    "copy_blocks",
    "lm_head",
    "head_logits",
    "confidence",
    "score",
    "sample",
)
# Arguments that an op writes to.
_WRITTEN = {"add_rms_norm": (0,), "rope_kv": (4,), "copy_blocks": (0,)}


def _mapped(change: Callable[[Tensor], Tensor], x: Any) -> Any:
    """``x`` with all its tensors changed, also those in plans and packed weights."""
    if isinstance(x, Tensor):
        return change(x)
    if isinstance(x, AttentionPlan):
        return AttentionPlan(
            x.layout,
            change(x.table),
            change(x.starts),
            change(x.contexts),
            change(x.slots),
            x.work,
            x.splits,
        )
    if isinstance(x, tuple):
        parts = [_mapped(change, part) for part in x]
        return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
    if is_dataclass(x) and any(isinstance(getattr(x, f.name), Tensor) for f in fields(x)):
        make: Any = type(x)
        return make(**{f.name: _mapped(change, getattr(x, f.name)) for f in fields(x)})
    return x


def _on_host(name: str, device: torch.device) -> Callable[..., Any]:
    """A reference on copies of its arguments; results and written tensors go back to the device."""
    reference = getattr(_Unrounded(), name)

    def run(*args: Any, **named: Any) -> Any:
        given = _mapped(lambda x: x.cpu(), args)
        more = {key: _mapped(lambda x: x.cpu(), value) for key, value in named.items()}
        result = reference(*given, **more)
        for place in _WRITTEN.get(name, ()):
            args[place].copy_(given[place])
        return _mapped(lambda x: x.to(device), result)

    return run


def replaced(names: Sequence[str]) -> BackendChoice:
    """Gives each device its backend, with the operations of these names by their references.

    References wait for the device, so graphs must be off.
    """

    def choose(device: torch.device) -> Backend:
        backend = copy(ops.backend_for(device))
        for name in names:
            setattr(backend, name, _on_host(name, device))
        return backend

    return choose
