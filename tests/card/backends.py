"""The backend of a simulated card: each operation by its reference, as one launch. Fast."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, fields, is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import ops
from kernels.backends.triton import TritonBackend
from tests.card.streams import CARD
from tests.card.tensor import allocate, fill, inner


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
    "sample": lambda logits, v, rows, fused=True: _like((len(logits),), torch.int64),
}


def _mapped(change: Callable[[Tensor], Any], x: Any) -> Any:
    if isinstance(x, Tensor):
        return change(x)
    if isinstance(x, ops.AttentionPlan):
        numbers = (x.table, x.starts, x.contexts, x.slots)
        return ops.AttentionPlan(x.layout, *_mapped(change, numbers), x.work, x.splits)
    if isinstance(x, tuple):
        parts = [_mapped(change, part) for part in x]
        return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
    if is_dataclass(x) and any(isinstance(getattr(x, f.name), Tensor) for f in fields(x)):
        return type(x)(**{f.name: _mapped(change, getattr(x, f.name)) for f in fields(x)})
    return x


class _Host(ops.CpuBackend):
    """What a launch runs."""

    def paged_attention(
        self, arena: Tensor, plan: ops.AttentionPlan, layer: int, query: Tensor
    ) -> Tensor:
        """The host's bounds must hold for whatever a replay finds."""
        spans, contexts = plan.starts.diff().numpy(), plan.contexts.numpy()
        counted = ops.Work.counted(spans, contexts[: len(spans)] * (spans > 0))
        assert all(a <= b for a, b in zip(astuple(counted), astuple(plan.work), strict=True))
        return super().paged_attention(arena, plan, layer, query)


class CardBackend(TritonBackend):
    """On one card. ``calls`` counts by device what references ran there, replays included."""

    def __init__(self, device: torch.device, calls: Counter[torch.device]) -> None:
        super().__init__(device)
        self._device, self._calls, self._host = device, calls, _Host()

    def _launch(self, name: str, args: Any, kwargs: Any) -> Any:
        operation, device = getattr(self._host, name), self._device
        tensors: list[Tensor] = []
        _mapped(tensors.append, (*args, *kwargs.values()))
        assert CARD.current.device == device, f"{name} of {device} on {CARD.current.device}"
        assert all(x.device == device for x in tensors), f"{name}: not all on {device}"
        out = _mapped(lambda x: allocate(x, device), FORMS[name](*args, **kwargs))
        into, given = _mapped(inner, out), _mapped(inner, args)
        named = {key: _mapped(inner, value) for key, value in kwargs.items()}

        def run() -> None:
            self._calls[device] += 1
            # A plan is copied again: it keeps what it has looked up, and a replay is another tick.
            fill(into, operation(*_mapped(lambda x: x, given), **named))

        CARD.current.put(run)
        return out


def _launching(name: str) -> Callable[..., Any]:
    return lambda self, *args, **kwargs: self._launch(name, args, kwargs)


for _name in FORMS:
    setattr(CardBackend, _name, _launching(_name))


class CardBackends:
    """Gives each simulated card a backend of its own, other devices the usual one."""

    def __init__(self) -> None:
        self._calls: Counter[torch.device] = Counter()
        self._made: dict[torch.device, CardBackend] = {}
        self._of_others = ops.backend_for

    def __call__(self, device: torch.device) -> ops.Backend:
        if device.type != "cuda":
            return self._of_others(device)
        card = torch.device("cuda", device.index or 0)
        if card not in self._made:
            self._made[card] = CardBackend(card, self._calls)
        return self._made[card]

    def restart(self) -> None:
        """Count from here on."""
        self._calls.clear()
        CARD.worked.clear()

    def check(self) -> None:
        """AssertionError if an engine ran on a card on which no reference did."""
        idle = sorted(str(card) for card in CARD.worked if not self._calls[card])
        assert not idle, f"an engine ran on {', '.join(idle)}, where no reference was called"


@contextmanager
def references() -> Iterator[CardBackends]:
    """Within: simulated cards, which must be there, have these backends; ``check`` at the end."""
    assert CARD.defaults, "there is no simulated card"
    backends = CardBackends()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "backend_for", backends)
        yield backends
        backends.check()
