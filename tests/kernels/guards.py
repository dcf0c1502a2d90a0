"""Buffers with guards around them, and a watch over every address that the interpreter touches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter

GUARD = 512  # bytes on either side, a multiple of every alignment that kernels know


class OutsideError(AssertionError):
    """A kernel touched memory that belongs to none of its arguments."""


class Guards:
    """Tensors in the middle of larger buffers that are full of one value, and stay so."""

    def __init__(self, value: float, shift: int = 0) -> None:
        """``shift``: elements by which tensors miss their alignment."""
        self.value, self.shift = value, shift
        self._held: list[tuple[Tensor, Tensor, Tensor]] = []

    def around(self, tensor: Tensor, gap: int = 0) -> Tensor:
        """A copy of the same shape; ``gap`` guarded elements between the rows of its first axis."""
        view = self.new(tensor.shape, tensor.dtype, tensor.device, gap)
        view.copy_(tensor)
        return view

    def new(self, shape: Any, dtype: torch.dtype, device: Any, gap: int = 0) -> Tensor:
        """Nothing in it yet but the guards' value."""
        size = torch.Size(shape)
        each = size[1:].numel() + gap
        near = GUARD // dtype.itemsize + self.shift
        count = near + size[0] * each + GUARD // dtype.itemsize if size else 2 * near + 1
        whole = torch.empty(count * dtype.itemsize, dtype=torch.uint8, device=device).view(dtype)
        self._fill(whole)
        inner = torch.empty(0, dtype=dtype, device=device).new_zeros(0)
        strides = inner.new_zeros(size[1:]).stride()
        view = whole.as_strided(size, (each, *strides) if size else (), near)
        outside = torch.ones(count, dtype=torch.bool, device=device)
        outside.as_strided(view.shape, view.stride(), near).fill_(False)
        self._held.append((whole, outside, _bits(whole)[outside].clone()))
        return view

    def _fill(self, whole: Tensor) -> None:
        if whole.dtype.itemsize == 1:  # bytes, and fp8: 127 is its NaN
            whole.view(torch.uint8).fill_(127 if math.isnan(self.value) else 1)
        elif whole.is_floating_point():
            whole.fill_(self.value)
        else:
            large = 2 ** min(30, 8 * whole.dtype.itemsize - 2)
            whole.fill_(large if math.isnan(self.value) else int(self.value))

    def check(self) -> None:
        """Every guard still holds what it held."""
        for whole, outside, before in self._held:
            assert torch.equal(_bits(whole)[outside], before), "a guard was overwritten"


def _bits(tensor: Tensor) -> Tensor:
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.view(kinds[tensor.dtype.itemsize])


@contextmanager
def guarded_allocations(guards: Guards) -> Iterator[None]:
    """What launchers allocate has guards too."""
    empty, new_empty = torch.empty, Tensor.new_empty

    def make(shape: Any, dtype: torch.dtype | None, device: Any) -> Tensor:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(torch, "empty", empty)
            inner.setattr(Tensor, "new_empty", new_empty)
            return guards.new(shape, dtype or torch.float32, device)

    def shape_of(sizes: tuple[Any, ...]) -> Any:
        return sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes

    def of(like: Tensor, dtype: torch.dtype | None) -> tuple[torch.dtype, Any]:
        return dtype or like.dtype, like.device

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch, "empty", lambda *s, dtype=None, device=None: make(shape_of(s), dtype, device)
        )
        patch.setattr(
            Tensor,
            "new_empty",
            lambda t, *s, dtype=None, **more: (  # with a device it is the interpreter that asks
                new_empty(t, *s, dtype=dtype, **more) if more else make(shape_of(s), *of(t, dtype))
            ),
        )
        patch.setattr(torch, "empty_like", lambda t, dtype=None: make(t.shape, *of(t, dtype)))
        yield


@contextmanager
def watched() -> Iterator[list[int]]:
    """Raises ``OutsideError`` where an interpreted kernel loads or stores beyond its arguments.

    Yields a list of the number of addresses that each launch touched.
    """
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    load, store, start = (
        builder.create_masked_load,
        builder.create_masked_store,
        executor._init_args_hst,
    )
    ranges: list[np.ndarray] = []
    touched: list[int] = []

    def begin(self: Any, arguments: Any, keywords: Any) -> Any:
        found = start(self, arguments, keywords)
        tensors = [a for a in (*found[0], *found[1].values()) if isinstance(a, Tensor)]
        ranges[:] = [np.array([_extent(t) for t in tensors], np.uint64)]
        touched.append(0)
        return found

    def check(pointers: Any, mask: Any) -> None:
        at = np.broadcast_to(pointers.data, np.broadcast(pointers.data, mask.data).shape)
        at = at[np.broadcast_to(mask.data, at.shape).astype(bool)].astype(np.uint64)
        width = np.uint64(interpreter._get_np_dtype(pointers.get_element_ty()).itemsize)
        inside = np.zeros(at.shape, bool)
        for first, end in ranges[0]:
            inside |= (at >= first) & (at + width <= end)
        if not inside.all():
            raise OutsideError(
                f"{int((~inside).sum())} of {inside.size} addresses are in no argument"
            )
        touched[-1] += inside.size

    def checked(inner: Callable[..., Any], mask_at: int) -> Callable[..., Any]:
        def run(self: Any, pointers: Any, *rest: Any, **options: Any) -> Any:
            check(pointers, rest[mask_at])
            return inner(self, pointers, *rest, **options)

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "create_masked_load", checked(load, 0))
        patch.setattr(builder, "create_masked_store", checked(store, 1))
        patch.setattr(executor, "_init_args_hst", begin)
        yield touched


def _extent(tensor: Tensor) -> tuple[int, int]:
    """From the first byte of a view to past its last one."""
    if not tensor.numel():
        return 0, 0
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
