"""The kernels' operations on the simulated card by their references, each as one launch: fast."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, fields, is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import ops
from kernels.types.attention import AttentionPlan
from tests.card.streams import CARD
from tests.card.tensor import CardTensor, allocate, fill, inner


def _like(shape: Any, dtype: torch.dtype) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def _same(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return _like(x.shape, x.dtype)


def _halves(x: Tensor) -> Tensor:
    return _like((*x.shape[:-1], x.shape[-1] // 2), x.dtype)


def _product(x: Tensor, weight: Any, bias: Any = None, scale: Any = None) -> Tensor:
    return _like((len(x), weight.shape[0]), x.dtype)


def _query(
    qkv: Tensor, bias: Any, rope: Any, positions: Any, arena: Any, plan: Any, *_: Any
) -> Any:
    layout = plan.layout
    heads = qkv.shape[1] // layout.head_dim - 2 * layout.kv_heads
    return _like((len(qkv), heads, layout.head_dim), qkv.dtype)


def _statistics(rows: int) -> ops.Confidence:
    types = {"argmax": torch.int64, "valid": torch.bool}
    names = ops.Confidence._fields
    return ops.Confidence(*(_like((rows,), types.get(n, torch.float32)) for n in names))


def _head(hidden: Tensor, weight: Tensor, vocabulary: int, keep: bool, fused: bool = True) -> Any:
    kept = _like((len(hidden), len(weight)), torch.float32) if keep else None
    return _statistics(len(hidden)), kept


FORMS: dict[str, Callable[..., Any]] = {
    "rms_norm": _same,
    "add_rms_norm": _same,
    "silu_mul": _halves,
    "linear": _product,
    "rope_kv": _query,
    "paged_attention": lambda arena, plan, layer, query: _same(query),
    "copy_blocks": lambda *_: None,
    "lm_head": _head,
    "head_logits": lambda h, w, v: _like((len(h), len(w)), torch.float32),
    "confidence": lambda logits, v: _statistics(len(logits)),
    "score": lambda logits, v, targets: _like(targets.shape, torch.float64),
    "sample": lambda logits, v, rows: _like((len(logits),), torch.int64),
}


def _mapped(change: Callable[[Tensor], Any], x: Any) -> Any:
    if isinstance(x, Tensor):
        return change(x)
    if isinstance(x, AttentionPlan):
        numbers = (x.table, x.starts, x.contexts, x.slots)
        return AttentionPlan(x.layout, *_mapped(change, numbers), x.work, x.splits)
    if isinstance(x, tuple):
        parts = [_mapped(change, part) for part in x]
        return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
    if is_dataclass(x) and any(isinstance(getattr(x, f.name), Tensor) for f in fields(x)):
        return type(x)(**{f.name: _mapped(change, getattr(x, f.name)) for f in fields(x)})
    return x


def _within_bounds(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Attention, where the host's bounds must hold for whatever a replay finds."""

    def checked(arena: Tensor, plan: AttentionPlan, layer: int, query: Tensor) -> Tensor:
        spans, contexts = plan.starts.diff().numpy(), plan.contexts.numpy()
        found = ops.Work.counted(spans, contexts[: len(spans)] * (spans > 0))
        assert all(a <= b for a, b in zip(astuple(found), astuple(plan.work), strict=True))
        return operation(arena, plan, layer, query)

    return checked


def _launched(operation: Callable[..., Any], form: Callable[..., Any]) -> Callable[..., Any]:
    def launch(*args: Any, **kwargs: Any) -> Any:
        tensors: list[Tensor] = []
        _mapped(tensors.append, (*args, *kwargs.values()))
        if not any(isinstance(x, CardTensor) for x in tensors):
            return operation(*args, **kwargs)
        device = CARD.current.device
        assert all(x.device == device for x in tensors), f"{operation}: not all on {device}"
        out = _mapped(lambda x: allocate(x, device), form(*args, **kwargs))
        into, given = _mapped(inner, out), _mapped(inner, args)
        named = {name: _mapped(inner, value) for name, value in kwargs.items()}
        # A plan is copied again: it keeps what it has looked up, and a replay is another tick.
        CARD.current.put(lambda: fill(into, operation(*_mapped(lambda x: x, given), **named)))
        return out

    return launch


@contextmanager
def references() -> Iterator[None]:
    """Within: what would launch kernels on the simulated card runs their references there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "paged_attention", _within_bounds(ops.paged_attention))
        for name, form in FORMS.items():
            patch.setattr(ops, name, _launched(getattr(ops, name), form))
        yield
