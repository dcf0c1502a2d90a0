"""How to draw a token in each row of a batch, and what is changed in its logits before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.checks import check_tensor


@dataclass(frozen=True)
class DrawRows:
    """How to draw in each row, on the device of the logits. ``on`` builds one with checked values.

    temperature: fp64 [rows], 0 is greedy.
    key: int64 [rows], the 64 bits of each row's key.
    counter: int64 [rows, 3]: sample, position, and 2 * attempt + model; 32 bits of each count. The
        fourth counter of Philox is the token's id // 4.
    top_k: int64 [rows], 0 is off; top_p: fp64 [rows], 1 is off; min_p: fp64 [rows], 0 is off.
        None where no row has such a filter: without any, their kernel is not launched.
    """

    temperature: Tensor
    key: Tensor
    counter: Tensor
    top_k: Tensor | None = None
    top_p: Tensor | None = None
    min_p: Tensor | None = None

    @classmethod
    def on(cls, device: torch.device | str, **columns: Any) -> DrawRows:
        """From numbers on the host: their values are checked here, where that costs no wait."""
        rules: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
            "temperature": ("at least 0", lambda v: (v >= 0) & v.isfinite()),
            "top_k": ("at least 0", lambda v: v >= 0),
            "top_p": ("in (0, 1]", lambda v: (v > 0) & (v <= 1)),
            "min_p": ("in [0, 1]", lambda v: (v >= 0) & (v <= 1)),
        }
        kinds = {"key": torch.int64, "counter": torch.int64, "top_k": torch.int64}
        made: dict[str, Any] = {}
        for name, column in columns.items():
            if column is None:
                continue
            values = torch.as_tensor(column, dtype=kinds.get(name, torch.float64), device="cpu")
            wanted, rule = rules.get(name, ("", torch.ones_like))
            if not bool(rule(values).all()):
                raise ValueError(f"{name} must be {wanted}, got {values.tolist()}")
            made[name] = values.to(device, non_blocking=True)
        return cls(**made)

    @property
    def filtered(self) -> bool:
        """Whether any row may have a filter."""
        return any(v is not None for v in (self.top_k, self.top_p, self.min_p))

    def check(self, like: Tensor) -> None:
        """ValueError unless all fit the rows of ``like``."""
        rows, real = len(like), (torch.float64,)
        check_tensor("draw.temperature", self.temperature, [rows], real, like)
        check_tensor("draw.key", self.key, [rows], (torch.int64,), like)
        check_tensor("draw.counter", self.counter, [rows, 3], (torch.int64,), like)
        if self.top_k is not None:
            check_tensor("draw.top_k", self.top_k, [rows], (torch.int64,), like)
        for name in ("top_p", "min_p"):
            if (column := getattr(self, name)) is not None:
                check_tensor(f"draw.{name}", column, [rows], real, like)


@dataclass(frozen=True)
class PenaltyRows:
    """Penalties of each row, [rows], and three lists of (row, token id) pairs, int64 [2, pairs].

    repetition: fp64, above 0; 1 is off.
    presence, frequency: fp64, in logits; 0 is off.
    prompt: a pair for each token of a row's prompt, in any order.
    generated: a pair for each token that was generated, as often as it was.
    biased: each pair at most once.
    bias: fp64 [pairs of ``biased``], in logits.
    """

    repetition: Tensor
    presence: Tensor
    frequency: Tensor
    prompt: Tensor
    generated: Tensor
    biased: Tensor
    bias: Tensor
