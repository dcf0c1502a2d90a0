"""Ops of the engine replaced by their references, which then run on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from kernels import ops
from kernels.ops import AttentionPlan, Confidence, DrawRows
from kernels.reference import attention, confidence, layers, logprobs, sampling
from kernels.reference.packed import packed_linear


def _linear(x: Tensor, weight: Any, bias: Any = None, scale: Any = None) -> Tensor:
    if isinstance(weight, Tensor):
        return layers.linear(x, weight, bias, scale)
    return packed_linear(x, weight, bias)


def _head_logits(hidden: Tensor, weight: Tensor, vocabulary: int) -> Tensor:
    return layers.linear(hidden.float(), weight.float())


def _lm_head(
    hidden: Tensor, weight: Tensor, vocabulary: int, keep: bool, fused: bool = True
) -> tuple[Confidence, Tensor | None]:
    logits = _head_logits(hidden, weight, vocabulary)
    return confidence.confidence(logits, vocabulary), logits if keep else None


def _score(logits: Tensor, vocabulary: int, targets: Tensor) -> Tensor:
    found = confidence.confidence(logits, vocabulary)
    return logprobs.score(logits, vocabulary, targets, found)


def _sample(logits: Tensor, vocabulary: int, rows: Any) -> Tensor:
    if isinstance(rows, DrawRows):
        rows = ops.with_uniforms(rows)
    return sampling.sample(logits, vocabulary, rows)


_REFERENCES: dict[str, Callable[..., Any]] = {
    "rms_norm": layers.rms_norm,
    "add_rms_norm": layers.add_rms_norm,
    "silu_mul": layers.silu_mul,
    "linear": _linear,
    "rope_kv": attention.rope_kv,
    "paged_attention": attention.paged_attention,
    "copy_blocks": attention.copy_blocks,
    "lm_head": _lm_head,
    "head_logits": _head_logits,
    "confidence": confidence.confidence,
    "score": _score,
    "sample": _sample,
}
# Arguments that an op writes to.
_WRITTEN = {"add_rms_norm": (0,), "rope_kv": (4,), "copy_blocks": (0,)}
NAMES = tuple(_REFERENCES)


def _mapped(change: Callable[[Tensor], Tensor], x: Any) -> Any:
    """``x`` with all its tensors changed, also those in plans and packed weights."""
    if isinstance(x, Tensor):
        return change(x)
    if isinstance(x, AttentionPlan):
        return AttentionPlan(
            x.layout, change(x.table), change(x.starts), change(x.contexts), change(x.slots),
            x.work, x.splits,
        )  # fmt: skip
    if isinstance(x, tuple):
        parts = [_mapped(change, part) for part in x]
        return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
    if is_dataclass(x) and any(isinstance(getattr(x, f.name), Tensor) for f in fields(x)):
        make: Any = type(x)
        return make(**{f.name: _mapped(change, getattr(x, f.name)) for f in fields(x)})
    return x


def _device_of(arguments: Any) -> torch.device:
    """The card of any of the tensors, else the host."""
    found = [torch.device("cpu")]

    def look(tensor: Tensor) -> Tensor:
        found.append(tensor.device)
        return tensor

    _mapped(look, arguments)
    return next((device for device in found if device.type != "cpu"), found[0])


def _on_host(name: str) -> Callable[..., Any]:
    """A reference on copies of its arguments; results and written tensors go back to the device."""

    def run(*args: Any, **named: Any) -> Any:
        device = _device_of((args, *named.values()))
        given = _mapped(lambda x: x.cpu(), args)
        more = {key: _mapped(lambda x: x.cpu(), value) for key, value in named.items()}
        result = _REFERENCES[name](*given, **more)
        for place in _WRITTEN.get(name, ()):
            args[place].copy_(given[place])
        return _mapped(lambda x: x.to(device), result)

    return run


@contextmanager
def replaced(names: Sequence[str]) -> Iterator[None]:
    """In this context the ops of these names are replaced by their references, in this process.

    References wait for the device, so graphs must be off.
    """
    before = {name: getattr(ops, name) for name in names}
    try:
        for name in names:
            setattr(ops, name, _on_host(name))
        yield
    finally:
        for name, op in before.items():
            setattr(ops, name, op)
